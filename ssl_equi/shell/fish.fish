# What the next word can be; FILES is any name of a file.
function __ssl_equi_candidates
    set -l current (commandline -ct)
    set -l words (commandline -opc)
    set -e words[1]
    test "$words[1]" = where; and set -e words[1]
    if not set -q words[1]
        __ssl_equi_commands all
        return
    end
    set -l command $words[1]
    set -e words[1]
    set -l names (__ssl_equi_scripts $command)
    set -l script (__ssl_equi_default $command)
    if not set -q words[1]; and set -q names[1]; and not string match -q -- '-*' $current
        printf '%s\n' $names
        return
    end
    if set -q words[1]; and contains -- $words[1] $names
        set script (__ssl_equi_folder $command)/$words[1]
        set -e words[1]
    end
    set -l flag
    set -l typed 0
    for word in $words
        if string match -q -- '-*' $word
            set flag $word
            set typed 0
        else
            set typed (math $typed + 1)
        end
    end
    if string match -q -- '-*' $current
        __ssl_equi_options "$script"
        return
    end
    set -l values (__ssl_equi_values "$script $flag")
    if not test "$values[1]" = several; and not test "$values[1]" = one -a $typed -eq 0
        set values (__ssl_equi_first "$script")
        test "$values[1]" = one; and set -q words[1]; and return
    end
    if test "$values[2]" = FILES
        __fish_complete_path $current
    else if set -q values[2]
        printf '%s\n' $values[2..]
    end
end
complete -c ssl-equi -f -a '(__ssl_equi_candidates)'

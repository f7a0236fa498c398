# What the next word can be, for bash and zsh: $1 begins it, the others stand before it. FILES is any name of a file.
_ssl_equi_candidates() {
  local current="$1" command names script flag='' typed=0 word values
  shift
  [ "$1" = where ] && shift
  if [ $# -eq 0 ]; then _ssl_equi_commands all; return; fi
  command="$1"
  shift
  names="$(_ssl_equi_scripts "$command")"
  script="$(_ssl_equi_default "$command")"
  case "$current" in
    -*) ;;
    *) if [ $# -eq 0 ] && [ -n "$names" ]; then echo "$names"; return; fi ;;
  esac
  case " $names " in
    *" $1 "*) if [ $# -gt 0 ]; then script="$(_ssl_equi_folder "$command")/$1"; shift; fi ;;
  esac
  for word in "$@"; do
    case "$word" in
      -*) flag="$word" typed=0 ;;
      *) typed=$((typed + 1)) ;;
    esac
  done
  case "$current" in -*) _ssl_equi_options "$script"; return ;; esac
  values="$(_ssl_equi_values "$script $flag")"
  case "$values" in
    several*) echo "${values#several }"; return ;;
    one*) if [ "$typed" -eq 0 ]; then echo "${values#one }"; return; fi ;;
  esac
  values="$(_ssl_equi_first "$script")"
  case "$values" in
    several*) echo "${values#several }" ;;
    one*) if [ $# -eq 0 ]; then echo "${values#one }"; fi ;;
  esac
}

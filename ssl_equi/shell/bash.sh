_ssl_equi() {
  local IFS=$'\n' current="${COMP_WORDS[COMP_CWORD]}" before=() word candidates
  for word in "${COMP_WORDS[@]:1:COMP_CWORD-1}"; do
    [ "$word" = = ] || before+=("$word") # bash takes --option=value for three words
  done
  [ "$current" = = ] && current=
  candidates="$(_ssl_equi_candidates "$current" "${before[@]}")"
  if [ "$candidates" = FILES ]; then
    compopt -o filenames 2>/dev/null
    COMPREPLY=($(compgen -f -- "$current"))
  else
    COMPREPLY=($(compgen -W "${candidates// /$'\n'}" -- "$current"))
  fi
}
complete -F _ssl_equi ssl-equi

_ssl_equi() {
  local candidates="$(_ssl_equi_candidates "${words[CURRENT]}" "${(@)words[2,CURRENT-1]}")"
  if [[ "$candidates" == FILES ]]; then
    _files
  else
    compadd -- ${=candidates}
  fi
}
whence compdef >/dev/null || { autoload -Uz compinit && compinit }
compdef _ssl_equi ssl-equi

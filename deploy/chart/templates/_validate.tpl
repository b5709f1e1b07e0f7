{{/* Every wrong value is told in one sentence, before anything is made. */}}
{{- define "tapestry.validate" -}}
{{- $v := .Values }}
{{- if not $v.uninstall }}
  {{- if not $v.apiServers }}
    {{- fail "apiServers is empty: give the API server's address as nodes reach it without this network, such as --set 'apiServers={https://192.168.1.10:6443}'" }}
  {{- end }}
  {{- range $v.apiServers }}
    {{- if not (regexMatch "^https://[^/]+$" (toString .)) }}
      {{- fail (printf "apiServers: %q is not the URL of an API server: expected one like https://192.168.1.10:6443" (toString .)) }}
    {{- end }}
  {{- end }}
  {{- range $name := list "clusterCIDRs" "serviceCIDRs" "nodeCIDRs" }}
    {{- $list := get $v $name }}
    {{- if not (or $list (eq $name "nodeCIDRs")) }}
      {{- fail (printf "%s is empty: give one range per family, such as --set '%s={10.244.0.0/16}'" $name $name) }}
    {{- end }}
    {{- range $list }}
      {{- if not (regexMatch "^([0-9]+[.][0-9]+[.][0-9]+[.][0-9]+|[0-9a-fA-F:]*:[0-9a-fA-F:.]*)/[0-9]+$" (toString .)) }}
        {{- fail (printf "%s: %q is not a range of addresses: expected one like 10.244.0.0/16" $name (toString .)) }}
      {{- end }}
    {{- end }}
  {{- end }}
  {{- if not $v.clusterDNS }}
    {{- fail "clusterDNS is empty: give the addresses that kubelet's clusterDNS says, such as --set 'clusterDNS={10.96.0.10}'" }}
  {{- end }}
  {{- if gt (len $v.clusterDNS) 2 }}
    {{- fail (printf "clusterDNS has %d addresses: a Service has one per family, two at most" (len $v.clusterDNS)) }}
  {{- end }}
  {{- range $v.clusterDNS }}
    {{- if not (regexMatch "^([0-9]+[.][0-9]+[.][0-9]+[.][0-9]+|[0-9a-fA-F:]*:[0-9a-fA-F:.]*)$" (toString .)) }}
      {{- fail (printf "clusterDNS: %q is not an address: expected one like 10.96.0.10" (toString .)) }}
    {{- end }}
  {{- end }}
  {{- if and (include "tapestry.announces" .) (not $v.hostTAP.enabled) }}
    {{- fail "announce: addresses are reached by the host TAP: set hostTAP.enabled, or neither announce.l2.enabled nor announce.bgp.enabled" }}
  {{- end }}
  {{- if or (eq (int $v.announce.user) 0) (eq (int $v.announce.user) (int $v.user)) }}
    {{- fail (printf "announce.user: %d is root or the agent's user: choose another, since routers talk to this one" (int $v.announce.user)) }}
  {{- end }}
  {{- if $v.ingress.enabled }}
    {{- range $name := list "http" "https" }}
      {{- $addr := get $v.ingress $name }}
      {{- if and $addr (not (regexMatch ":[0-9]+$" (toString $addr))) }}
        {{- fail (printf "ingress.%s: %q is not an address to listen on: expected one like :80, or nothing" $name (toString $addr)) }}
      {{- end }}
    {{- end }}
    {{- if not (or $v.ingress.http $v.ingress.https) }}
      {{- fail "ingress.enabled is true, and neither ingress.http nor ingress.https says where it is served: set one, or ingress.enabled=false" }}
    {{- end }}
    {{- range $v.ingress.secretNamespaces }}
      {{- if not (regexMatch "^([*]|[a-z0-9]([-a-z0-9]*[a-z0-9])?)$" (toString .)) }}
        {{- fail (printf "ingress.secretNamespaces: %q is not the name of a namespace: expected names, or \"*\" for all" (toString .)) }}
      {{- end }}
    {{- end }}
    {{- if and (has "*" $v.ingress.secretNamespaces) (gt (len $v.ingress.secretNamespaces) 1) }}
      {{- fail "ingress.secretNamespaces: \"*\" stands for all namespaces: name no other beside it" }}
    {{- end }}
    {{- $privileged := include "tapestry.privilegedAddrs" . | fromJsonArray }}
    {{- if and $privileged (not $v.hostTAP.enabled) }}
      {{- fail (printf "ingress is to be served on %s, a port which takes a capability, and hostTAP.enabled=false leaves no step that has one: choose ports from 1024 on, or ingress.enabled=false" (first $privileged)) }}
    {{- end }}
  {{- end }}
  {{- if or (lt (int $v.wireguardPort) 1024) (gt (int $v.wireguardPort) 65535) }}
    {{- fail (printf "wireguardPort: %d is not a port that takes no capability: expected 1024 to 65535" (int $v.wireguardPort)) }}
  {{- end }}
  {{- if not (regexMatch "^(|0[.]0[.]0[.]0|127[.]0[.]0[.]1|[[]::[]]):[0-9]+$" (toString $v.healthAddress)) }}
    {{- fail (printf "healthAddress: %q must have the loopback address in it, where kubelet asks: expected one like :10256 or 127.0.0.1:10256" (toString $v.healthAddress)) }}
  {{- end }}
  {{- if and $v.metricsAddress (not (regexMatch ":[0-9]+$" (toString $v.metricsAddress))) }}
    {{- fail (printf "metricsAddress: %q is not an address to listen on: expected one like 127.0.0.1:10249, or nothing" (toString $v.metricsAddress)) }}
  {{- end }}
  {{- with $v.updateStrategy.rollingUpdate }}
    {{- if not (or (has (toString .maxSurge) (list "0" "0%")) (has (toString .maxUnavailable) (list "0" "0%"))) }}
      {{- fail (printf "updateStrategy.rollingUpdate: maxSurge is %v and maxUnavailable %v, and Kubernetes takes only one of the two that is not 0: set the other to 0" .maxSurge .maxUnavailable) }}
    {{- end }}
  {{- end }}
  {{- if and (int $v.underlayMTU) (or (lt (int $v.underlayMTU) 1280) (gt (int $v.underlayMTU) 65535)) }}
    {{- fail (printf "underlayMTU: %d is not the MTU of a network between nodes: expected 1280 to 65535 bytes, or 0 to find it out" (int $v.underlayMTU)) }}
  {{- end }}
  {{- range $name := list "user" "group" }}
    {{- if lt (get $v $name | int) 1 }}
      {{- fail (printf "%s must be the number of an ordinary %s, not %v" $name $name (get $v $name)) }}
    {{- end }}
  {{- end }}
  {{- if not (has $v.logLevel (list "debug" "info" "warn" "error")) }}
    {{- fail (printf "logLevel: %q is none: expected debug, info, warn or error" (toString $v.logLevel)) }}
  {{- end }}
{{- end }}
{{- range $name := list "cniBinDir" "cniConfDir" "runDir" "stateDir" }}
  {{- $dir := get $v $name }}
  {{- if not (regexMatch "^/[^/]+/.*[^/]$" (toString $dir)) }}
    {{- fail (printf "%s: %q is not a directory below another: expected an absolute path like /run/tapestry" $name (toString $dir)) }}
  {{- end }}
{{- end }}
{{- end }}

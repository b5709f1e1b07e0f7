{{- define "tapestry.labels" -}}
app.kubernetes.io/name: tapestry
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
{{- end }}

{{/* What all containers have. Why one ended is in its pod's status, with the last lines of its log. */}}
{{- define "tapestry.container" -}}
image: {{ printf "%s:%s" .Values.image.repository (.Values.image.tag | default .Chart.AppVersion) | quote }}
imagePullPolicy: {{ .Values.image.pullPolicy }}
terminationMessagePolicy: FallbackToLogsOnError
{{- end }}

{{/* What all pods have. Their place in the cluster hangs on the network, so they use the host's. */}}
{{- define "tapestry.pod" -}}
hostNetwork: true
dnsPolicy: Default
priorityClassName: {{ .Values.priorityClassName }}
{{- with .Values.nodeSelector }}
nodeSelector: {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .Values.tolerations }}
tolerations: {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .Values.image.pullSecrets }}
imagePullSecrets: {{- toYaml . | nindent 2 }}
{{- end }}
enableServiceLinks: false
automountServiceAccountToken: false
securityContext:
  seccompProfile: {type: RuntimeDefault}
  {{- with .Values.seLinuxOptions }}
  seLinuxOptions: {{- toYaml . | nindent 4 }}
  {{- end }}
{{- end }}

{{/* Who keeper and agent are: as the values say, and where Tapestry is installed already, as its keeper is. A keeper goes on over an
update, and believes nobody but its own user. */}}
{{- define "tapestry.id" -}}
{{- $root := index . 0 }}
{{- $id := get $root.Values (index . 1) }}
{{- $field := index . 2 }}
{{- with lookup "apps/v1" "DaemonSet" $root.Release.Namespace "tapestry-keeper" }}
  {{- with (first .spec.template.spec.containers).securityContext }}
    {{- $id = get . $field | default $id }}
  {{- end }}
{{- end }}
{{- int $id }}
{{- end }}
{{- define "tapestry.user" -}}{{ include "tapestry.id" (list . "user" "runAsUser") }}{{- end }}
{{- define "tapestry.group" -}}{{ include "tapestry.id" (list . "group" "runAsGroup") }}{{- end }}

{{/* The security context of a program that runs on: a user of its own, without a capability. */}}
{{- define "tapestry.unprivileged" -}}
runAsNonRoot: true
runAsUser: {{ include "tapestry.user" . }}
runAsGroup: {{ include "tapestry.group" . }}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities: {drop: [ALL]}
{{- end }}

{{/* That of a step that writes directories of root: root, in our group, with the capabilities of the list alone. */}}
{{- define "tapestry.step" -}}
runAsUser: 0
runAsGroup: {{ include "tapestry.group" .root }}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities:
  drop: [ALL]
  {{- with .add }}
  add: {{ toJson . }}
  {{- end }}
{{- end }}

{{/* Not empty when addresses are announced. */}}
{{- define "tapestry.announces" -}}
{{- if or .Values.announce.l2.enabled .Values.announce.bgp.enabled }}yes{{ end }}
{{- end }}

{{/* The addresses of Ingress that are served, as a list in JSON. */}}
{{- define "tapestry.ingressAddrs" -}}
{{- $list := list }}
{{- if .Values.ingress.enabled }}
  {{- range list .Values.ingress.http .Values.ingress.https }}
    {{- if . }}{{ $list = append $list . }}{{ end }}
  {{- end }}
{{- end }}
{{- toJson $list }}
{{- end }}

{{/* Those among them whose port takes a capability. */}}
{{- define "tapestry.privilegedAddrs" -}}
{{- $list := list }}
{{- range include "tapestry.ingressAddrs" . | fromJsonArray }}
  {{- if lt (regexFind "[0-9]+$" . | int) 1024 }}{{ $list = append $list . }}{{ end }}
{{- end }}
{{- toJson $list }}
{{- end }}

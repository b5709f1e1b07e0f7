{{- define "tapestry.labels" -}}
app.kubernetes.io/name: tapestry
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
{{- end }}

{{- define "tapestry.image" -}}
image: {{ printf "%s:%s" .Values.image.repository (.Values.image.tag | default .Chart.AppVersion) | quote }}
imagePullPolicy: {{ .Values.image.pullPolicy }}
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

{{/* The security context of a program that runs on: nobody's user, without a capability. */}}
{{- define "tapestry.unprivileged" -}}
runAsNonRoot: true
runAsUser: {{ .Values.user }}
runAsGroup: {{ .Values.group }}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities: {drop: [ALL]}
{{- end }}

{{/* That of a step that writes directories of root: root, in our group, with the capabilities of the list alone. */}}
{{- define "tapestry.step" -}}
runAsUser: 0
runAsGroup: {{ .root.Values.group }}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities:
  drop: [ALL]
  {{- with .add }}
  add: {{ toJson . }}
  {{- end }}
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

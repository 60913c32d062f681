{{/* Labels of an object. Arguments: root, component. */}}
{{- define "derops.labels" -}}
{{ include "derops.selectorLabels" . }}
app.kubernetes.io/instance: {{ .root.Release.Name | quote }}
app.kubernetes.io/version: {{ .root.Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .root.Release.Service }}
app.kubernetes.io/part-of: derops
helm.sh/chart: {{ printf "%s-%s" .root.Chart.Name .root.Chart.Version | replace "+" "_" }}
{{- end }}

{{/* Labels by which pods are selected; they never change. Arguments: component. */}}
{{- define "derops.selectorLabels" -}}
app.kubernetes.io/name: derops
app.kubernetes.io/component: {{ .component }}
{{- end }}

{{/* Labels of a pod: without versions, so that an upgrade restarts what it changes and nothing else. Arguments: root, component. */}}
{{- define "derops.podLabels" -}}
{{ include "derops.selectorLabels" . }}
app.kubernetes.io/instance: {{ .root.Release.Name | quote }}
app.kubernetes.io/part-of: derops
{{- end }}

{{/* Image of a program. Arguments: root, program. */}}
{{- define "derops.image" -}}
{{- with .root.Values.image.registry }}{{ trimSuffix "/" . }}/{{ end -}}
derops/{{ .program }}:{{ .root.Values.image.tag | default .root.Chart.AppVersion }}
{{- with get (.root.Values.image.digests | default dict) .program }}@{{ . }}{{ end }}
{{- end }}

{{- define "derops.operatorUser" -}}
system:serviceaccount:{{ .Release.Namespace }}:derops-operator
{{- end }}

{{- define "derops.apiUser" -}}
system:serviceaccount:{{ .Release.Namespace }}:derops-api
{{- end }}

{{- define "derops.certManagerUser" -}}
system:serviceaccount:{{ .Values.certManager.namespace }}:{{ .Values.certManager.serviceAccount }}
{{- end }}

{{/* One of the chart's files with its placeholders filled in. Arguments: root, name. */}}
{{- define "derops.file" -}}
{{- $values := merge (dict "operatorUser" (include "derops.operatorUser" .root) "apiUser" (include "derops.apiUser" .root) "certManagerUser" (include "derops.certManagerUser" .root)) .root.Values }}
{{- tpl (.root.Files.Get (printf "files/%s" .name)) (dict "Values" $values "Release" .root.Release "Chart" .root.Chart "Template" .root.Template) }}
{{- end }}

{{/* The documents of one of the chart's files, with our labels. Arguments: root, name, component. */}}
{{- define "derops.documents" -}}
{{- $labels := include "derops.labels" . | fromYaml }}
{{- range splitList "\n---\n" (include "derops.file" .) }}
{{- with fromYaml . }}
{{- $_ := set .metadata "labels" (merge (.metadata.labels | default dict) $labels) }}
---
{{ toYaml . }}
{{- end }}
{{- end }}
{{- end }}

{{/* What the restricted Pod Security Standard asks of a pod. Arguments: userID. */}}
{{- define "derops.podSecurityContext" -}}
runAsNonRoot: true
runAsUser: {{ .userID | int64 }}
runAsGroup: {{ .userID | int64 }}
fsGroup: {{ .userID | int64 }}
fsGroupChangePolicy: OnRootMismatch
seccompProfile: {type: RuntimeDefault}
{{- end }}

{{- define "derops.containerSecurityContext" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities: {drop: [ALL]}
{{- end }}

{{/* Probes of a program of ours. The kubelet puts what a command prints into the pod's Events, and the answer of an httpGet nowhere. Arguments: port. */}}
{{- define "derops.probes" -}}
startupProbe:
  httpGet: {path: /livez, port: {{ .port }}}
  initialDelaySeconds: 2
  periodSeconds: 1
  timeoutSeconds: 5
  failureThreshold: 120
livenessProbe:
  httpGet: {path: /livez, port: {{ .port }}}
  periodSeconds: 10
  timeoutSeconds: 5
readinessProbe:
  exec: {command: [/opt/derops/bin/ready, {{ .port | quote }}]}
  periodSeconds: 3
  timeoutSeconds: 5
{{- end }}

{{/* Where a pod may run. Arguments: the values of its program. */}}
{{- define "derops.placement" -}}
{{- with .nodeSelector }}
nodeSelector: {{ toYaml . | nindent 2 }}
{{- end }}
{{- with .tolerations }}
tolerations: {{ toYaml . | nindent 2 }}
{{- end }}
{{- with .affinity }}
affinity: {{ toYaml . | nindent 2 }}
{{- end }}
{{- end }}

{{- define "derops.pullSecrets" -}}
{{- with .Values.image.pullSecrets }}
imagePullSecrets:
  {{- range . }}
  - name: {{ . | quote }}
  {{- end }}
{{- end }}
{{- end }}

{{/* A program's way into the database, where its role is derops_PROGRAM. Arguments: root, program, the values that name a Secret. */}}
{{- define "derops.databaseURL" -}}
- name: DEROPS_{{ upper .program }}_DATABASE_URL
{{- if .root.Values.postgresql.enabled }}
  value: {{ printf "postgresql://derops_%s@derops-postgresql.%s.svc:5432/derops?sslmode=verify-full&sslrootcert=/tls/database/ca.crt&sslcert=/tls/database/tls.crt&sslkey=/tls/database/tls.key" .program .root.Release.Namespace | quote }}
{{- else }}
  valueFrom:
    secretKeyRef: {name: {{ .secret.secretName | quote }}, key: {{ .secret.secretKey | quote }}}
{{- end }}
{{- end }}

{{/* How a Service is reached. Arguments: its values. */}}
{{- define "derops.reached" -}}
type: {{ .type }}
{{- with .loadBalancerClass }}
loadBalancerClass: {{ . | quote }}
{{- end }}
{{- with .loadBalancerSourceRanges }}
loadBalancerSourceRanges: {{ toYaml . | nindent 2 }}
{{- end }}
{{- if ne .type "ClusterIP" }}
externalTrafficPolicy: {{ .externalTrafficPolicy }}
{{- end }}
{{- end }}

{{/* Settings of the event log on NATS. Arguments: root, prefix. */}}
{{- define "derops.natsEnvironment" -}}
- {name: {{ .prefix }}_EVENT_LOG, value: {{ regexReplaceAll "\\s" .root.Values.eventLog.natsURL "" | quote }}}
{{- if .root.Values.eventLog.natsCredentials.secretName }}
- {name: {{ .prefix }}_NATS_CREDENTIALS_FILE, value: /nats/credentials/credentials}
{{- end }}
{{- if .root.Values.eventLog.natsCA.secretName }}
- {name: {{ .prefix }}_NATS_CA_FILE, value: /nats/ca/ca.crt}
{{- end }}
{{- end }}

{{- define "derops.natsMounts" -}}
{{- if .Values.eventLog.natsCredentials.secretName }}
- {name: nats-credentials, mountPath: /nats/credentials, readOnly: true}
{{- end }}
{{- if .Values.eventLog.natsCA.secretName }}
- {name: nats-ca, mountPath: /nats/ca, readOnly: true}
{{- end }}
{{- end }}

{{/* Configuration of an agent with a simulated battery. Arguments: root, asset, directory of its certificate, file of the server CA. */}}
{{- define "derops.simulatedBattery" -}}
gateways: ["derops-gateway.{{ .root.Release.Namespace }}.svc:{{ .root.Values.gateway.service.port | int64 }}"]
serverCAFile: {{ .serverCA }}
dataDirectory: /data
opsPort: 8083
assets:
  - namespace: {{ .root.Release.Namespace | quote }}
    name: {{ .asset | quote }}
    certificateDirectory: {{ .directory }}
    driver:
      kind: simulated
      model: battery
      maxInjectionWatts: 10000
      maxAbsorptionWatts: 8000
      energyCapacityWattHours: 20000
{{- end }}

{{/* Marks an object of "helm test". What failed stays to be looked at until the next test. Arguments: weight. */}}
{{- define "derops.testHook" -}}
helm.sh/hook: test
helm.sh/hook-weight: {{ .weight | quote }}
helm.sh/hook-delete-policy: before-hook-creation,hook-succeeded
helm.sh/hook-output-log-policy: hook-failed,hook-succeeded
{{- end }}

{{- define "derops.testEnvironment" -}}
- {name: ASSET, value: {{ .asset | quote }}}
- name: NAMESPACE
  valueFrom: {fieldRef: {fieldPath: metadata.namespace}}
- name: POD_NAME
  valueFrom: {fieldRef: {fieldPath: metadata.name}}
- name: POD_UID
  valueFrom: {fieldRef: {fieldPath: metadata.uid}}
{{- end }}

{{/* Refuses names that are there already, which the API server does in words that help nobody. Arguments: value, entries, taken. */}}
{{- define "derops.refuseTaken" -}}
{{- $value := .value }}
{{- $taken := .taken }}
{{- range .entries }}
{{- if has .name $taken }}
{{- fail (printf "%s has %s, which is there already: the chart sets it, or the list has it twice. Take it out" $value .name) }}
{{- end }}
{{- $taken = append $taken .name }}
{{- end }}
{{- end }}

{{/* Whether new Dispatches are stamped; empty = not. Kinds beside groups are only in what a cluster says of itself: "helm template" knows its version alone. */}}
{{- define "derops.stamped" -}}
{{- $served := semverCompare ">=1.36.0-0" .Capabilities.KubeVersion.Version }}
{{- if .Capabilities.APIVersions.Has "v1/Pod" }}
{{- $served = .Capabilities.APIVersions.Has "admissionregistration.k8s.io/v1/MutatingAdmissionPolicy" }}
{{- end }}
{{- if or (eq .Values.creators.stamp "always") (and (eq .Values.creators.stamp "auto") $served) }}true{{ end }}
{{- end }}

{{/* Peers of a NetworkPolicy; none of them means everybody. */}}
{{- define "derops.from" -}}
{{- with . -}}
from: {{ toYaml . | nindent 2 }}
{{- end }}
{{- end }}

{{/* What a NetworkPolicy lets out to the database. */}}
{{- define "derops.toDatabase" -}}
{{- if .Values.postgresql.enabled -}}
- to: [{podSelector: {matchLabels: {{ include "derops.selectorLabels" (dict "component" "database") | fromYaml | toJson }}}}]
  ports: [{protocol: TCP, port: 5432}]
{{- else -}}
- ports: [{protocol: TCP, port: {{ .Values.networkPolicies.databasePort | int64 }}}]
{{- end }}
{{- end }}

{{/* Bytes of a quantity such as 10Gi. Arguments: the quantity. */}}
{{- define "derops.bytes" -}}
{{- $units := dict "" 1 "k" 1000 "M" 1000000 "G" 1000000000 "T" 1000000000000 "Ki" 1024 "Mi" 1048576 "Gi" 1073741824 "Ti" 1099511627776 }}
{{- $unit := regexFind "[A-Za-z]*$" . }}
{{- mulf (trimSuffix $unit . | float64) (get $units $unit | default 1125899906842624 | float64) | int64 }}
{{- end }}

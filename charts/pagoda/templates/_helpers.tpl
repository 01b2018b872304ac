{{- define "pagoda.selector" -}}
app.kubernetes.io/name: pagoda-operator
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/component: operator
{{- end }}

{{- define "pagoda.labels" -}}
{{ include "pagoda.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/part-of: pagoda
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ .Chart.Name }}-{{ .Chart.Version }}
{{- end }}

{{- define "pagoda.tag" -}}
{{ .Values.image.tag | default .Chart.AppVersion }}
{{- end }}

{{- define "pagoda.image" -}}
{{- $registry := trimSuffix "/" .Values.image.registry }}
{{- .Values.operator.image | default (printf "%spagoda/operator:%s" (ternary "" (printf "%s/" $registry) (empty $registry)) (include "pagoda.tag" .)) }}
{{- end }}

{{- /* One object for each host, as one namespace may have several. A name may not have a star. */ -}}
{{- define "pagoda.routeName" -}}
pagoda-{{ replace "*" "any" .host }}
{{- end }}

{{- define "pagoda.masterKeySecret" -}}
{{ .Values.masterKey.existingSecret | default "pagoda-operator" }}
{{- end }}

{{- /* What people ask for, and what becomes of it. In the operator's own namespace, when no models are served there, this is all. */ -}}
{{- define "pagoda.canaryRules" -}}
- apiGroups: [pagoda.dev]
  resources: [inferencemodels]
  verbs: [get, list, watch]
- apiGroups: [pagoda.dev]
  resources: [inferencemodels/status]
  verbs: [patch]
{{- end }}

{{- /* Everywhere in the cluster, or in each watched namespace: the rules are the same but for nodes, which have no namespace. */ -}}
{{- define "pagoda.rules" -}}
{{ include "pagoda.canaryRules" . }}
# Children.
- apiGroups: [apps]
  resources: [deployments]
  verbs: [get, list, watch, create, patch, delete]
- apiGroups: [""]
  resources: [services, serviceaccounts, persistentvolumeclaims]
  verbs: [get, list, watch, create, patch, delete]
- apiGroups: [networking.k8s.io]
  resources: [networkpolicies]
  verbs: [get, list, watch, create, patch, delete]
- apiGroups: [policy]
  resources: [poddisruptionbudgets]
  verbs: [get, list, watch, create, patch, delete]
- apiGroups: [rbac.authorization.k8s.io]
  resources: [roles, rolebindings]
  verbs: [get, list, watch, create, patch, delete]
{{- if .Values.metrics.serviceMonitor }}
- apiGroups: [monitoring.coreos.com]
  resources: [servicemonitors]
  verbs: [get, list, watch, create, patch, delete]
{{- end }}
{{- if .Values.metrics.rules }}
- apiGroups: [monitoring.coreos.com]
  resources: [prometheusrules]
  verbs: [get, list, watch, create, patch, delete]
{{- end }}
# Tokens between the parts are derived, not read: secrets are only ever created.
- apiGroups: [""]
  resources: [secrets]
  verbs: [create]
# Why a model is not ready, and the readiness gate that says that routers know a worker.
- apiGroups: [""]
  resources: [pods]
  verbs: [list, watch]
- apiGroups: [""]
  resources: [pods/status]
  verbs: [patch]
- apiGroups: [events.k8s.io]
  resources: [events]
  verbs: [create]
# Not used by the operator itself: it can grant to routers only what it holds.
- apiGroups: [discovery.k8s.io]
  resources: [endpointslices]
  verbs: [get, list, watch]
{{- end }}

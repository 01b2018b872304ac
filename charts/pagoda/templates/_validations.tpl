{{- /* Mixes of values that cannot work, each refused with one sentence. What one value may be is said by values.schema.json. */ -}}
{{- define "pagoda.validations" -}}
{{- if eq .Values.masterKey.existingSecret "pagoda-operator" }}
{{- fail "masterKey.existingSecret: pagoda-operator is the release's own Secret, which goes away once a name is given: give yours another name" }}
{{- end }}
{{- range $label, $_ := .Values.operator.podLabels }}
{{- if hasKey (include "pagoda.labels" $ | fromYaml) $label }}
{{- fail (printf "operator.podLabels: %s is a label of the chart's own: choose another" $label) }}
{{- end }}
{{- end }}
{{- if and .Values.router.redis.secret (not .Values.router.database.secret) }}
{{- fail "router.redis: limits belong to keys, and keys need router.database.secret: name it too" }}
{{- end }}
{{- $hosts := dict }}
{{- range .Values.ingress.routes }}
{{- include "pagoda.validRoute" (dict "root" $ "hosts" $hosts "route" . "value" "ingress.routes") }}
{{- end }}
{{- $hosts = dict }}
{{- range .Values.httpRoutes }}
{{- include "pagoda.validRoute" (dict "root" $ "hosts" $hosts "route" . "value" "httpRoutes") }}
{{- end }}
{{- end }}

{{- define "pagoda.validRoute" -}}
{{- if and .root.Values.watchNamespaces (not (has .route.namespace .root.Values.watchNamespaces)) }}
{{- fail (printf "%s: %s has no router, as watchNamespaces does not list it: add it there or remove the route" .value .route.namespace) }}
{{- end }}
{{- if hasKey .hosts .route.host }}
{{- fail (printf "%s: %s is there twice: a host leads to one namespace" .value .route.host) }}
{{- end }}
{{- $_ := set .hosts .route.host true }}
{{- end }}

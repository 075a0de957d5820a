{{- define "kv-indexer.fullname" -}}
{{- if contains .Chart.Name .Release.Name -}}{{ .Release.Name | trunc 50 | trimSuffix "-" }}{{- else -}}{{ printf "%s-%s" .Release.Name .Chart.Name | trunc 50 | trimSuffix "-" }}{{- end -}}
{{- end -}}

{{/* What chooses the pods of one component: (list $ "api") */}}
{{- define "kv-indexer.selector" -}}
app.kubernetes.io/name: {{ (index . 0).Chart.Name }}
app.kubernetes.io/instance: {{ (index . 0).Release.Name }}
app.kubernetes.io/component: {{ index . 1 }}
{{- end -}}

{{- define "kv-indexer.labels" -}}
{{ include "kv-indexer.selector" . }}
app.kubernetes.io/version: {{ (index . 0).Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ (index . 0).Release.Service }}
helm.sh/chart: {{ printf "%s-%s" (index . 0).Chart.Name (index . 0).Chart.Version }}
{{- end -}}

{{/* A value as text. A chart's numbers are floats, and large ones would read 1e+06. */}}
{{- define "kv-indexer.value" -}}
{{- if and (not (kindIs "string" .)) (eq (float64 (int64 .)) (float64 .)) -}}{{ int64 . }}{{- else -}}{{ . }}{{- end -}}
{{- end -}}

{{- define "kv-indexer.enginesConfigMap" -}}
{{ .Values.enginesConfigMap | default (printf "%s-engines" (include "kv-indexer.fullname" .)) }}
{{- end -}}

{{/* Directories of files that one asks for or shows oneself with: volumes, mounts and variables, each a list in YAML */}}
{{- define "kv-indexer.secretVolumes" -}}
{{- if .Values.tokens.existingSecret }}
- name: tokens
  secret: {secretName: {{ .Values.tokens.existingSecret }}}
{{- end }}
{{- if .Values.tls.existingSecret }}
- name: tls
  secret: {secretName: {{ .Values.tls.existingSecret }}}
{{- end }}
{{- if and .Values.gateway.enabled (eq .Values.gateway.tls "secret") }}
- name: gateway-tls
  secret: {secretName: {{ required "gateway.tlsSecret: should name a secret where gateway.tls is secret" .Values.gateway.tlsSecret }}}
{{- end }}
{{- end -}}

{{- define "kv-indexer.secretMounts" -}}
{{- if .Values.tokens.existingSecret }}
- {name: tokens, mountPath: /etc/kv-indexer-tokens, readOnly: true}
{{- end }}
{{- if .Values.tls.existingSecret }}
- {name: tls, mountPath: /etc/kv-indexer-tls, readOnly: true}
{{- end }}
{{- if and .Values.gateway.enabled (eq .Values.gateway.tls "secret") }}
- {name: gateway-tls, mountPath: /etc/kv-indexer-gateway-tls, readOnly: true}
{{- end }}
{{- end -}}

{{- define "kv-indexer.secretVariables" -}}
{{- if .Values.tokens.existingSecret }}
{{- if not (or .Values.tokens.apiKey .Values.tokens.adminKey) }}
{{- fail "tokens.apiKey, tokens.adminKey: one of them should name a key of tokens.existingSecret" }}
{{- end }}
{{- with .Values.tokens.apiKey }}
- {name: KV_INDEXER_API_TOKEN_FILE, value: {{ printf "/etc/kv-indexer-tokens/%s" . | quote }}}
{{- end }}
{{- with .Values.tokens.adminKey }}
- {name: KV_INDEXER_ADMIN_TOKEN_FILE, value: {{ printf "/etc/kv-indexer-tokens/%s" . | quote }}}
{{- end }}
{{- end }}
{{- if .Values.tls.existingSecret }}
- {name: KV_INDEXER_TLS_CERT, value: /etc/kv-indexer-tls/tls.crt}
- {name: KV_INDEXER_TLS_KEY, value: /etc/kv-indexer-tls/tls.key}
{{- end }}
{{- end -}}

{{/* What makes scorers pick for gateways: variables */}}
{{- define "kv-indexer.gatewayVariables" -}}
- {name: KV_INDEXER_GATEWAY_LISTEN, value: "0.0.0.0:{{ .Values.gateway.port }}"}
- {name: KV_INDEXER_GATEWAY_DRAIN_S, value: {{ include "kv-indexer.value" .Values.gateway.drainSeconds | quote }}}
{{- if eq .Values.gateway.tls "self-signed" }}
- {name: KV_INDEXER_GATEWAY_SELF_SIGNED, value: "true"}
{{- else if eq .Values.gateway.tls "secret" }}
- {name: KV_INDEXER_GATEWAY_TLS_CERT, value: /etc/kv-indexer-gateway-tls/tls.crt}
- {name: KV_INDEXER_GATEWAY_TLS_KEY, value: /etc/kv-indexer-gateway-tls/tls.key}
{{- end }}
{{- end -}}

{{- define "kv-indexer.engineNamespaces" -}}
{{ .Values.discovery.namespaces | default (list .Release.Namespace) | toJson }}
{{- end -}}

{{/* Where engines are looked for, as --discover has it; empty for nowhere. */}}
{{- define "kv-indexer.sources" -}}
{{- $sources := list -}}
{{- range $namespace := include "kv-indexer.engineNamespaces" . | fromJsonArray -}}
{{- if $.Values.discovery.selector -}}
{{- $sources = append $sources (printf "pods:%s?selector=%s" $namespace $.Values.discovery.selector) -}}
{{- end -}}
{{- range $.Values.discovery.inferencePools -}}
{{- $sources = append $sources (printf "inferencepool:%s/%s" $namespace .) -}}
{{- end -}}
{{- range $.Values.discovery.services -}}
{{- $sources = append $sources (printf "service:%s/%s" $namespace .) -}}
{{- end -}}
{{- end -}}
{{- join ";" $sources -}}
{{- end -}}

{{/* The component whose pods follow engines. */}}
{{- define "kv-indexer.follower" -}}
{{- ternary "ingest" "api" (eq .Values.mode "shared") -}}
{{- end -}}

{{/* The pod's spec of one component: (list $ "ingest" $values (list "ingest" "--config" …)) */}}
{{- define "kv-indexer.podSpec" -}}
{{- $root := index . 0 -}}
{{- $component := index . 1 -}}
{{- $values := index . 2 -}}
{{- $arguments := index . 3 -}}
{{- $followsEngines := has "--config" $arguments -}}
{{- $follows := eq $component (include "kv-indexer.follower" $root) -}}
{{- $sources := include "kv-indexer.sources" $root -}}
{{- $discovers := and $follows (ne $sources "") -}}
{{- $listens := and $follows $root.Values.listen.enabled -}}
{{- $secretVolumes := include "kv-indexer.secretVolumes" $root | trim -}}
{{- $scheme := ternary "HTTPS" "HTTP" (ne $root.Values.tls.existingSecret "") -}}
serviceAccountName: {{ include "kv-indexer.fullname" $root }}
# To ask the API server for engines. Nothing else here asks it for anything.
automountServiceAccountToken: {{ $discovers }}
enableServiceLinks: false
{{- $picks := and (eq $component "api") $root.Values.gateway.enabled -}}
{{- $endS := ceil (($root.Values.settings).shutdown_s | default 3) }}
# Longer than the pause before SIGTERM and {{ if $picks }}--gateway-drain-s{{ else }}--shutdown-s{{ end }} together.
terminationGracePeriodSeconds: {{ add 17 (ternary (max $endS (ceil $root.Values.gateway.drainSeconds)) $endS $picks) }}
{{- with $root.Values.image.pullSecrets }}
imagePullSecrets:
  {{- range . }}
  - name: {{ . }}
  {{- end }}
{{- end }}
securityContext:
  runAsNonRoot: true
  runAsUser: 10001
  runAsGroup: 10001
  seccompProfile: {type: RuntimeDefault}
topologySpreadConstraints:
  {{- range list "kubernetes.io/hostname" "topology.kubernetes.io/zone" }}
  - topologyKey: {{ . }}
    maxSkew: 1
    whenUnsatisfiable: ScheduleAnyway
    labelSelector:
      matchLabels:
        {{- include "kv-indexer.selector" (list $root $component) | nindent 8 }}
  {{- end }}
{{- with $values.nodeSelector }}
nodeSelector:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with $values.tolerations }}
tolerations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with $values.affinity }}
affinity:
  {{- toYaml . | nindent 2 }}
{{- end }}
containers:
  - name: kv-indexer
    image: {{ printf "%s:%s" $root.Values.image.repository ($root.Values.image.tag | default $root.Chart.AppVersion) }}
    imagePullPolicy: {{ $root.Values.image.pullPolicy }}
    args:
      {{- toYaml (concat $arguments $values.extraArgs) | nindent 6 }}
    env:
      {{- range $name, $value := $root.Values.settings }}
      - name: KV_INDEXER_{{ upper $name }}
        value: {{ include "kv-indexer.value" $value | quote }}
      {{- end }}
      {{- if and (has "api" $arguments) (not (hasKey $root.Values.settings "ready_after_s")) }}
      # As long as others answer, one that has not loaded the index yet has nothing to say.
      - name: KV_INDEXER_READY_AFTER_S
        value: "600"
      {{- end }}
      {{- if $discovers }}
      - name: KV_INDEXER_DISCOVER
        value: {{ $sources | quote }}
      {{- end }}
      {{- if $listens }}
      - name: KV_INDEXER_LISTEN
        value: "tcp://*:{{ $root.Values.listen.port }},ranks={{ $root.Values.listen.ranks }}"
      {{- with $root.Values.listen.replay }}
      - name: KV_INDEXER_LISTEN_REPLAY
        value: {{ . | quote }}
      {{- end }}
      {{- end }}
      {{- with include "kv-indexer.secretVariables" $root | trim }}
      {{- . | nindent 6 }}
      {{- end }}
      {{- if $picks }}
      {{- include "kv-indexer.gatewayVariables" $root | trim | nindent 6 }}
      {{- end }}
      {{- if eq $root.Values.mode "shared" }}
      - name: KV_INDEXER_REDIS
        valueFrom:
          secretKeyRef:
            name: {{ $root.Values.redis.existingSecret }}
            key: url
      {{- end }}
    ports:
      - {name: http, containerPort: 8080}
      {{- if $listens }}
      {{- range $rank := until (int $root.Values.listen.ranks) }}
      - {name: events-{{ $rank }}, containerPort: {{ add $root.Values.listen.port $rank }}}
      {{- end }}
      {{- end }}
      {{- if $picks }}
      - {name: gateway, containerPort: {{ $root.Values.gateway.port }}}
      {{- end }}
    resources:
      {{- toYaml $values.resources | nindent 6 }}
    livenessProbe:
      httpGet: {path: /healthz, port: http, scheme: {{ $scheme }}}
      periodSeconds: 10
      timeoutSeconds: 3
    readinessProbe:
      httpGet: {path: /readyz, port: http, scheme: {{ $scheme }}}
      periodSeconds: 2
      timeoutSeconds: 2
    {{- if eq $component "api" }}
    # Until every proxy has heard that it goes.
    lifecycle:
      preStop:
        sleep: {seconds: 5}
    {{- end }}
    securityContext:
      allowPrivilegeEscalation: false
      readOnlyRootFilesystem: true
      capabilities: {drop: [ALL]}
    {{- if or $followsEngines $secretVolumes $root.Values.extraVolumeMounts }}
    volumeMounts:
      {{- if $followsEngines }}
      # The directory, not the file: only so a changed map comes through.
      - {name: engines, mountPath: /etc/kv-indexer, readOnly: true}
      {{- end }}
      {{- with include "kv-indexer.secretMounts" $root | trim }}
      {{- . | nindent 6 }}
      {{- end }}
      {{- with $root.Values.extraVolumeMounts }}
      {{- toYaml . | nindent 6 }}
      {{- end }}
    {{- end }}
{{- if or $followsEngines $secretVolumes $root.Values.extraVolumes }}
volumes:
  {{- if $followsEngines }}
  - name: engines
    configMap:
      name: {{ include "kv-indexer.enginesConfigMap" $root }}
  {{- end }}
  {{- with $secretVolumes }}
  {{- . | nindent 2 }}
  {{- end }}
  {{- with $root.Values.extraVolumes }}
  {{- toYaml . | nindent 2 }}
  {{- end }}
{{- end }}
{{- end -}}

{{/* The Deployment of one component: (list $ "ingest" $values (list "ingest" …) replicas), replicas 0 where an autoscaler says how many. */}}
{{- define "kv-indexer.deployment" -}}
{{- $root := index . 0 -}}
{{- $component := index . 1 -}}
{{- $values := index . 2 -}}
{{- $replicas := index . 4 -}}
apiVersion: apps/v1
kind: Deployment
metadata:
  name: {{ include "kv-indexer.fullname" $root }}-{{ $component }}
  labels:
    {{- include "kv-indexer.labels" (list $root $component) | nindent 4 }}
spec:
  {{- if $replicas }}
  replicas: {{ $replicas }}
  {{- end }}
  strategy:
    rollingUpdate: {maxSurge: 1, maxUnavailable: 0}
  selector:
    matchLabels:
      {{- include "kv-indexer.selector" (list $root $component) | nindent 6 }}
  template:
    metadata:
      labels:
        {{- include "kv-indexer.labels" (list $root $component) | nindent 8 }}
      {{- with $values.podAnnotations }}
      annotations:
        {{- toYaml . | nindent 8 }}
      {{- end }}
    spec:
      {{- include "kv-indexer.podSpec" (list $root $component $values (index . 3)) | nindent 6 }}
{{- end -}}

{{- define "kv-indexer.disruptionBudget" -}}
{{- $root := index . 0 -}}
{{- $component := index . 1 -}}
apiVersion: policy/v1
kind: PodDisruptionBudget
metadata:
  name: {{ include "kv-indexer.fullname" $root }}-{{ $component }}
  labels:
    {{- include "kv-indexer.labels" (list $root $component) | nindent 4 }}
spec:
  maxUnavailable: 1
  selector:
    matchLabels:
      {{- include "kv-indexer.selector" (list $root $component) | nindent 6 }}
{{- end -}}

{{/* Ways out, for network policies. */}}
{{- define "kv-indexer.wayToRedis" }}
{{- if .Values.redis.enabled }}
- to:
    - podSelector:
        matchLabels:
          {{- include "kv-indexer.selector" (list . "redis") | nindent 10 }}
  ports:
    - {protocol: TCP, port: 6379}
{{- else }}
- to:
    - ipBlock:
        cidr: {{ required "networkPolicy.externalRedis.cidr: where is the Redis? (or networkPolicy.enabled=false)" .Values.networkPolicy.externalRedis.cidr | quote }}
  ports:
    - {protocol: TCP, port: {{ .Values.networkPolicy.externalRedis.port }}}
{{- end }}
{{- end }}

{{/* Where engines are, as peers of a policy. */}}
{{- define "kv-indexer.engines" }}
- namespaceSelector:
    matchLabels:
      {{- toYaml .Values.networkPolicy.engines | nindent 6 }}
{{- if include "kv-indexer.sources" . }}
- namespaceSelector:
    matchExpressions:
      - key: kubernetes.io/metadata.name
        operator: In
        values: {{ include "kv-indexer.engineNamespaces" . }}
{{- end }}
{{- end }}

{{- define "kv-indexer.wayToApiServer" }}
{{- if include "kv-indexer.sources" . }}
- to:
    - ipBlock:
        cidr: {{ .Values.networkPolicy.apiServer.cidr | quote }}
  ports:
    {{- range .Values.networkPolicy.apiServer.ports }}
    - {protocol: TCP, port: {{ . }}}
    {{- end }}
{{- end }}
{{- end }}

{{/* To engines, by these ports: (list $ .Values.networkPolicy.enginePorts) */}}
{{- define "kv-indexer.wayToEngines" }}
- to:
    {{- include "kv-indexer.engines" (index . 0) | trim | nindent 4 }}
  ports:
    {{- range index . 1 }}
    - protocol: TCP
      port: {{ .port }}
      {{- with .endPort }}
      endPort: {{ . }}
      {{- end }}
    {{- end }}
{{- end }}

{{- define "kv-indexer.wayToNames" }}
- to:
    - namespaceSelector:
        matchLabels: {kubernetes.io/metadata.name: kube-system}
      podSelector:
        matchLabels: {k8s-app: kube-dns}
  ports:
    - {protocol: UDP, port: 53}
    - {protocol: TCP, port: 53}
{{- end }}

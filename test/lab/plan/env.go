package plan

import (
	"fmt"
	"strings"

	corev1 "k8s.io/api/core/v1"
)

// environment is a container's environment while it is put together: later entries replace earlier ones.
type environment struct {
	names  []string
	values map[string]string
}

func (e *environment) set(name, value string) {
	if _, ok := e.values[name]; !ok {
		e.names = append(e.names, name)
	}
	e.values[name] = value
}

func (e *environment) list() []string {
	out := make([]string, len(e.names))
	for i, name := range e.names {
		out[i] = name + "=" + e.values[name]
	}
	return out
}

// environment puts together what a container sees: the lab's own variables, envFrom, then env.
func (w *work) environment(pod *corev1.Pod, c *corev1.Container) (*environment, error) {
	e := &environment{values: map[string]string{}}
	for _, kv := range w.opts.Env {
		name, value, _ := strings.Cut(kv, "=")
		e.set(name, value)
	}
	e.set("HOSTNAME", hostname(pod))
	e.set("POD_NAME", pod.Name)
	e.set("POD_NAMESPACE", pod.Namespace)
	e.set("POD_IP", pod.Status.PodIP)
	e.set("NODE_NAME", pod.Spec.NodeName)
	for _, from := range c.EnvFrom {
		if err := w.envFrom(e, pod.Namespace, from); err != nil {
			return e, err
		}
	}
	for _, v := range c.Env {
		value := expand(v.Value, e.values)
		if v.ValueFrom != nil {
			var ok bool
			var err error
			if value, ok, err = w.valueFrom(pod, v.ValueFrom); err != nil {
				return e, fmt.Errorf("env %s: %w", v.Name, err)
			}
			if !ok {
				continue
			}
		}
		e.set(v.Name, value)
	}
	return e, nil
}

func (w *work) envFrom(e *environment, namespace string, from corev1.EnvFromSource) error {
	var data map[string]string
	var found, optional bool
	var what string
	switch {
	case from.ConfigMapRef != nil:
		what = "ConfigMap " + namespace + "/" + from.ConfigMapRef.Name
		optional = from.ConfigMapRef.Optional != nil && *from.ConfigMapRef.Optional
		data, found = w.configMap(namespace, from.ConfigMapRef.Name)
	case from.SecretRef != nil:
		what = "Secret " + namespace + "/" + from.SecretRef.Name
		optional = from.SecretRef.Optional != nil && *from.SecretRef.Optional
		data, found = w.secret(namespace, from.SecretRef.Name)
	}
	if !found && !optional {
		return fmt.Errorf("envFrom: there is no %s", what)
	}
	for _, name := range sortedKeys(data) {
		e.set(from.Prefix+name, data[name])
	}
	return nil
}

// valueFrom looks a value up. ok is false when an optional one is missing.
func (w *work) valueFrom(pod *corev1.Pod, from *corev1.EnvVarSource) (value string, ok bool, err error) {
	var data map[string]string
	var what, key string
	var optional *bool
	switch {
	case from.FieldRef != nil:
		value, err = podField(pod, from.FieldRef.FieldPath)
		return value, err == nil, err
	case from.ConfigMapKeyRef != nil:
		ref := from.ConfigMapKeyRef
		data, _ = w.configMap(pod.Namespace, ref.Name)
		what, key, optional = "ConfigMap "+pod.Namespace+"/"+ref.Name, ref.Key, ref.Optional
	case from.SecretKeyRef != nil:
		ref := from.SecretKeyRef
		data, _ = w.secret(pod.Namespace, ref.Name)
		what, key, optional = "Secret "+pod.Namespace+"/"+ref.Name, ref.Key, ref.Optional
	default:
		return "", false, fmt.Errorf("expected one of fieldRef, configMapKeyRef and secretKeyRef: the lab has no other source")
	}
	if value, ok = data[key]; ok || optional != nil && *optional {
		return value, ok, nil
	}
	return "", false, fmt.Errorf("there is no key %q in a %s", key, what)
}

func (w *work) configMap(namespace, name string) (map[string]string, bool) {
	for _, cm := range w.objects.ConfigMaps {
		if cm.Namespace == namespace && cm.Name == name {
			return cm.Data, true
		}
	}
	return nil, false
}

func (w *work) secret(namespace, name string) (map[string]string, bool) {
	for _, s := range w.objects.Secrets {
		if s.Namespace != namespace || s.Name != name {
			continue
		}
		data := map[string]string{}
		for k, v := range s.Data {
			data[k] = string(v)
		}
		for k, v := range s.StringData {
			data[k] = v
		}
		return data, true
	}
	return nil, false
}

// podField is the downward API (k8s.io/kubernetes/pkg/fieldpath).
func podField(pod *corev1.Pod, path string) (string, error) {
	switch path {
	case "metadata.name":
		return pod.Name, nil
	case "metadata.namespace":
		return pod.Namespace, nil
	case "metadata.uid":
		return string(pod.UID), nil
	case "spec.nodeName":
		return pod.Spec.NodeName, nil
	case "spec.serviceAccountName":
		return pod.Spec.ServiceAccountName, nil
	case "status.podIP":
		return pod.Status.PodIP, nil
	case "status.hostIP":
		return pod.Status.HostIP, nil
	case "status.podIPs":
		var ips []string
		for _, ip := range pod.Status.PodIPs {
			ips = append(ips, ip.IP)
		}
		return strings.Join(ips, ","), nil
	case "status.hostIPs":
		var ips []string
		for _, ip := range pod.Status.HostIPs {
			ips = append(ips, ip.IP)
		}
		return strings.Join(ips, ","), nil
	}
	for prefix, values := range map[string]map[string]string{"metadata.labels['": pod.Labels, "metadata.annotations['": pod.Annotations} {
		if key, ok := strings.CutPrefix(path, prefix); ok && strings.HasSuffix(key, "']") {
			return values[strings.TrimSuffix(key, "']")], nil
		}
	}
	return "", fmt.Errorf("fieldPath %q is none that an environment may have", path)
}

// expand replaces $(NAME) by its value and $$ by $; what names no variable stays (Container.command in k8s.io/api).
func expand(s string, vars map[string]string) string {
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		if s[i] != '$' || i+1 == len(s) {
			b.WriteByte(s[i])
			continue
		}
		switch s[i+1] {
		case '$':
			b.WriteByte('$')
			i++
			continue
		case '(':
			if end := strings.IndexByte(s[i:], ')'); end > 0 {
				if v, ok := vars[s[i+2:i+end]]; ok {
					b.WriteString(v)
					i += end
					continue
				}
			}
		}
		b.WriteByte('$')
	}
	return b.String()
}

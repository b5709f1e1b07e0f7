package container

import (
	"fmt"
	"maps"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
)

// Sources has what environments are made from.
type Sources struct {
	// Env is the beginning of every environment.
	Env        []string
	ConfigMaps []*corev1.ConfigMap
	Secrets    []*corev1.Secret
}

// Environment is a container's environment. Later entries replace earlier ones.
type Environment struct {
	names  []string
	values map[string]string
}

func (e *Environment) set(name, value string) {
	if _, ok := e.values[name]; !ok {
		e.names = append(e.names, name)
	}
	e.values[name] = value
}

// List returns the environment in the form that a process gets.
func (e *Environment) List() []string {
	out := make([]string, len(e.names))
	for i, name := range e.names {
		out[i] = name + "=" + e.values[name]
	}
	return out
}

// Of makes the environment of a container of a pod with that host name: the lab's own variables, then envFrom, then
// env. With an error it also returns the part that it could make.
func (s *Sources) Of(pod *corev1.Pod, c *corev1.Container, hostname string) (*Environment, error) {
	e := &Environment{values: map[string]string{}}
	for _, kv := range s.Env {
		name, value, _ := strings.Cut(kv, "=")
		e.set(name, value)
	}
	e.set("HOSTNAME", hostname)
	e.set("POD_NAME", pod.Name)
	e.set("POD_NAMESPACE", pod.Namespace)
	e.set("POD_IP", pod.Status.PodIP)
	e.set("NODE_NAME", pod.Spec.NodeName)
	for _, from := range c.EnvFrom {
		if err := s.envFrom(e, pod.Namespace, from); err != nil {
			return e, err
		}
	}
	for _, v := range c.Env {
		value := e.Expand(v.Value)
		if v.ValueFrom != nil {
			var ok bool
			var err error
			if value, ok, err = s.valueFrom(pod, v.ValueFrom); err != nil {
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

func (s *Sources) envFrom(e *Environment, namespace string, from corev1.EnvFromSource) error {
	var data map[string]string
	var found, optional bool
	var what string
	switch {
	case from.ConfigMapRef != nil:
		what = "ConfigMap " + namespace + "/" + from.ConfigMapRef.Name
		optional = from.ConfigMapRef.Optional != nil && *from.ConfigMapRef.Optional
		data, found = s.configMap(namespace, from.ConfigMapRef.Name)
	case from.SecretRef != nil:
		what = "Secret " + namespace + "/" + from.SecretRef.Name
		optional = from.SecretRef.Optional != nil && *from.SecretRef.Optional
		data, found = s.secret(namespace, from.SecretRef.Name)
	}
	if !found && !optional {
		return fmt.Errorf("envFrom: there is no %s", what)
	}
	for _, name := range slices.Sorted(maps.Keys(data)) {
		e.set(from.Prefix+name, data[name])
	}
	return nil
}

// valueFrom looks up a value. ok is false when an optional value is missing.
func (s *Sources) valueFrom(pod *corev1.Pod, from *corev1.EnvVarSource) (value string, ok bool, err error) {
	var data map[string]string
	var what, key string
	var optional *bool
	switch {
	case from.FieldRef != nil:
		value, err = podField(pod, from.FieldRef.FieldPath)
		return value, err == nil, err
	case from.ConfigMapKeyRef != nil:
		ref := from.ConfigMapKeyRef
		data, _ = s.configMap(pod.Namespace, ref.Name)
		what, key, optional = "ConfigMap "+pod.Namespace+"/"+ref.Name, ref.Key, ref.Optional
	case from.SecretKeyRef != nil:
		ref := from.SecretKeyRef
		data, _ = s.secret(pod.Namespace, ref.Name)
		what, key, optional = "Secret "+pod.Namespace+"/"+ref.Name, ref.Key, ref.Optional
	default:
		return "", false, fmt.Errorf("expected one of fieldRef, configMapKeyRef and secretKeyRef: the lab has no other source")
	}
	if value, ok = data[key]; ok || optional != nil && *optional {
		return value, ok, nil
	}
	return "", false, fmt.Errorf("there is no key %q in a %s", key, what)
}

func (s *Sources) configMap(namespace, name string) (map[string]string, bool) {
	for _, cm := range s.ConfigMaps {
		if cm.Namespace == namespace && cm.Name == name {
			return cm.Data, true
		}
	}
	return nil, false
}

func (s *Sources) secret(namespace, name string) (map[string]string, bool) {
	for _, secret := range s.Secrets {
		if secret.Namespace != namespace || secret.Name != name {
			continue
		}
		data := map[string]string{}
		for k, v := range secret.Data {
			data[k] = string(v)
		}
		for k, v := range secret.StringData {
			data[k] = v
		}
		return data, true
	}
	return nil, false
}

// podField returns a field of the pod (the downward API, k8s.io/kubernetes/pkg/fieldpath).
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

// Expand replaces $(NAME) by its value and $$ by $. A name of no variable stays as it is (Container.command in
// k8s.io/api).
func (e *Environment) Expand(s string) string {
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
				if v, ok := e.values[s[i+2:i+end]]; ok {
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

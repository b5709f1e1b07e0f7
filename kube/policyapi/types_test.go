package policyapi_test

import (
	"encoding/json"
	"reflect"
	"strings"
	"testing"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"tapestry.dev/tapestry/kube/policyapi"
)

const policy = `{"metadata":{"name":"c"},"spec":{"tier":"Admin","priority":7,"subject":{"pods":{"namespaceSelector":{},"podSelector":{"matchLabels":{"a":"b"}}}},
"ingress":[{"action":"Deny","from":[{"namespaces":{}}],"protocols":[{"tcp":{"destinationPort":{"range":{"start":1,"end":2}}}},{"destinationNamedPort":"web"}]}],
"egress":[{"name":"x","action":"Accept","to":[{"networks":["192.0.2.0/24"]},{"nodes":{}}]}]}}`

// TestUnread: what is newer than the types here is noted where it is, and survives being written and read.
func TestUnread(t *testing.T) {
	for _, c := range []struct {
		name, from, to        string
		spec, ingress, egress int
	}{
		{"nothing", "", "", 0, 0, 0},
		{"a field of a rule", `"name":"x"`, `"name":"x","log":true`, 0, 0, 1},
		{"a kind of peer", `{"namespaces":{}}`, `{"services":{}}`, 0, 1, 0},
		{"an attribute of a protocol", `{"range":`, `{"flags":"SYN","range":`, 0, 1, 0},
		{"a field of a policy", `"priority":7`, `"priority":7,"until":"tomorrow"`, 1, 0, 0},
		{"a kind of subject", `{"pods":{"n`, `{"serviceAccounts":{},"pods":{"n`, 1, 0, 0},
		{"another case", `"action":"Deny"`, `"Action":"Deny","action":"Deny"`, 0, 1, 0},
	} {
		text := policy
		if c.from != "" {
			if text = strings.Replace(policy, c.from, c.to, 1); text == policy {
				t.Fatalf("there is no %s", c.from)
			}
		}
		p := new(policyapi.ClusterNetworkPolicy)
		if err := json.Unmarshal([]byte(text), p); err != nil {
			t.Fatalf("%s: %v", c.name, err)
		}
		check := func(p *policyapi.ClusterNetworkPolicy, when string) {
			t.Helper()
			if s := &p.Spec; len(s.Unread) != c.spec || len(s.Ingress[0].Unread) != c.ingress || len(s.Egress[0].Unread) != c.egress {
				t.Errorf("%s, %s: unread are %q of the policy, %q and %q of its rules", c.name, when, s.Unread, s.Ingress[0].Unread, s.Egress[0].Unread)
			}
		}
		check(p, "read")
		data, err := json.Marshal(p)
		if err != nil {
			t.Fatal(err)
		}
		again := new(policyapi.ClusterNetworkPolicy)
		if err := json.Unmarshal(data, again); err != nil {
			t.Fatal(err)
		}
		check(again, "written and read")
		if !reflect.DeepEqual(p, again) || !reflect.DeepEqual(p, p.DeepCopy()) {
			t.Errorf("%s: %+v, and again %+v, copied %+v", c.name, p, again, p.DeepCopy())
		}
	}
}

// TestCopySharesNothing: no pointer, list or map of a policy is in its copy.
func TestCopySharesNothing(t *testing.T) {
	p := new(policyapi.ClusterNetworkPolicy)
	if err := json.Unmarshal([]byte(policy), p); err != nil {
		t.Fatal(err)
	}
	p.Labels = map[string]string{"a": "b"}
	p.Spec.Unread, p.Spec.Egress[0].Unread = []string{"x"}, []string{"y"}
	p.Spec.Egress[0].To[0].DomainNames = []string{"example.com"}
	p.Spec.Subject.Namespaces = &metav1.LabelSelector{}
	p.Status.Conditions = []metav1.Condition{{Type: "x"}}
	seen := map[uintptr]string{}
	note(reflect.ValueOf(p.DeepCopy()), "copy", func(at uintptr, path string) { seen[at] = path })
	note(reflect.ValueOf(p), "policy", func(at uintptr, path string) {
		if seen[at] != "" {
			t.Errorf("%s is %s", path, seen[at])
		}
	})
}

// note calls f with what v refers to.
func note(v reflect.Value, path string, f func(at uintptr, path string)) {
	switch v.Kind() {
	case reflect.Pointer:
		if !v.IsNil() {
			f(v.Pointer(), path)
			note(v.Elem(), path, f)
		}
	case reflect.Map:
		if !v.IsNil() {
			f(v.Pointer(), path)
		}
	case reflect.Slice:
		if v.Len() > 0 {
			f(v.Pointer(), path)
		}
		for i := range v.Len() {
			note(v.Index(i), path+"[]", f)
		}
	case reflect.Struct:
		for i := range v.NumField() {
			if v.Type().Field(i).IsExported() {
				note(v.Field(i), path+"."+v.Type().Field(i).Name, f)
			}
		}
	}
}

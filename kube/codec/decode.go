package codec

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"maps"
	"reflect"
	"slices"
	"strconv"
	"strings"

	"go.yaml.in/yaml/v3"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/json"

	"tapestry.dev/tapestry/kube"
)

// kind is one kind of object that a file may hold.
type kind struct {
	apiVersion string
	cluster    bool // cluster-scoped: has no namespace
	new        func() metav1.Object
}

var kinds = map[string]kind{
	"Node":          {"v1", true, func() metav1.Object { return new(corev1.Node) }},
	"Namespace":     {"v1", true, func() metav1.Object { return new(corev1.Namespace) }},
	"Pod":           {"v1", false, func() metav1.Object { return new(corev1.Pod) }},
	"Service":       {"v1", false, func() metav1.Object { return new(corev1.Service) }},
	"Secret":        {"v1", false, func() metav1.Object { return new(corev1.Secret) }},
	"ConfigMap":     {"v1", false, func() metav1.Object { return new(corev1.ConfigMap) }},
	"EndpointSlice": {"discovery.k8s.io/v1", false, func() metav1.Object { return new(discoveryv1.EndpointSlice) }},
	"Ingress":       {"networking.k8s.io/v1", false, func() metav1.Object { return new(networkingv1.Ingress) }},
	"IngressClass":  {"networking.k8s.io/v1", true, func() metav1.Object { return new(networkingv1.IngressClass) }},
	"ServiceCIDR":   {"networking.k8s.io/v1", true, func() metav1.Object { return new(networkingv1.ServiceCIDR) }},
}

// Decode gives the objects of one file, sorted by namespace and name. The error joins all mistakes that were found, each a
// kube.Problem with file and line; the objects without mistakes are returned along with it. name is used in messages only.
func Decode(name string, data []byte) (kube.Objects, error) {
	for _, read := range []func(*parser, []byte) bool{(*parser).jsonStream, (*parser).plainStream, (*parser).yamlStream} {
		p := parser{name: name, seen: map[kube.Ref]string{}}
		if read(&p, data) {
			p.objects.Sort()
			return p.objects, errors.Join(p.errs...)
		}
	}
	panic("unreachable: yamlStream reads everything")
}

type parser struct {
	name    string
	objects kube.Objects
	seen    map[kube.Ref]string
	errs    []error
}

func (p *parser) fail(line int, ref kube.Ref, path, format string, args ...any) {
	p.errs = append(p.errs, mistakeError{kube.Problem{
		Severity: kube.Error, Object: ref, Origin: p.at(line), Field: path, Message: fmt.Sprintf(format, args...),
	}})
}

func (p *parser) at(line int) string { return p.name + ":" + strconv.Itoa(line) }

// mistakeError is a Problem that may be about no object.
type mistakeError struct{ kube.Problem }

func (e mistakeError) Error() string {
	if e.Object == (kube.Ref{}) {
		return e.Origin + ": " + e.Message
	}
	return e.Problem.String()
}

func (e mistakeError) Unwrap() error { return e.Problem }

// jsonStream reads what Encode wrote: one object of JSON per document. It is many times faster than YAML. It reports false
// when the file is something else, or has any mistake: then the other way explains it.
func (p *parser) jsonStream(data []byte) bool {
	line := 1
	for doc := range bytes.SplitSeq(data, []byte("\n---\n")) {
		body := bytes.TrimPrefix(doc, []byte("---\n"))
		if len(bytes.TrimSpace(body)) > 0 {
			at := line + bytes.Count(doc[:len(doc)-len(body)], []byte("\n"))
			if body[0] != '{' || !p.jsonObject(at, body) {
				return false
			}
		}
		line += bytes.Count(doc, []byte("\n")) + 2
	}
	return len(p.errs) == 0
}

func (p *parser) jsonObject(line int, data []byte) bool {
	name, version, ok := jsonHead(data)
	if !ok {
		var head metav1.TypeMeta
		if json.UnmarshalCaseSensitivePreserveInts(data, &head) != nil {
			return false
		}
		name, version = head.Kind, head.APIVersion
	}
	k, ok := kinds[name]
	return ok && k.apiVersion == version && p.strictly(line, k, data)
}

// jsonHead finds kind and version where our own writer puts them: at the beginning, which saves a pass over the rest.
func jsonHead(data []byte) (name, version string, ok bool) {
	word := func(before string) string {
		rest, found := bytes.CutPrefix(data, []byte(before))
		i := bytes.IndexByte(rest, '"')
		if !found || i < 0 || bytes.IndexByte(rest[:i], '\\') >= 0 {
			return ""
		}
		data = rest[i:]
		return string(rest[:i])
	}
	if name = word(`{"kind":"`); name != "" {
		version = word(`","apiVersion":"`)
	} else if version = word(`{"apiVersion":"`); version != "" {
		name = word(`","kind":"`)
	}
	return name, version, name != "" && version != ""
}

// strictly decodes JSON of that kind and puts the object in; false when there is anything wrong with it.
func (p *parser) strictly(line int, k kind, data []byte) bool {
	obj := k.new()
	strict, err := json.UnmarshalStrict(data, obj)
	if err != nil || len(strict) > 0 {
		return false
	}
	p.add(line, k, obj)
	return true
}

// yamlStream reads everything, and explains what is wrong.
func (p *parser) yamlStream(data []byte) bool {
	dec := yaml.NewDecoder(bytes.NewReader(data))
	for {
		var doc yaml.Node
		err := dec.Decode(&doc)
		if errors.Is(err, io.EOF) {
			return true
		}
		if err != nil {
			line, msg := syntaxError(data, err)
			p.fail(line, kube.Ref{}, "", "this is not YAML: %s", msg)
			return true // the parser cannot find the next document
		}
		if len(doc.Content) == 1 {
			p.document(doc.Content[0])
		}
	}
}

func (p *parser) document(n *yaml.Node) {
	var r resolver
	v, err := r.value(n, 0)
	if err != nil {
		p.fail(n.Line, kube.Ref{}, "", "the document has more than %d values or is nested more than %d deep: make it smaller", maxNodes, maxDepth)
		return
	}
	for _, e := range r.errs {
		p.fail(e.line, refOf(v), "", "%s", e.msg)
	}
	if len(r.errs) == 0 && !(v.kind == scalarValue && v.scalar == nil) {
		p.object(v)
	}
}

// refOf names an object as well as its text allows.
func refOf(v *value) kube.Ref {
	meta := v.get("metadata")
	ref := kube.Ref{Kind: v.get("kind").text(), Namespace: meta.get("namespace").text(), Name: meta.get("name").text()}
	if k, ok := kinds[ref.Kind]; ok && !k.cluster && ref.Namespace == "" {
		ref.Namespace = metav1.NamespaceDefault
	}
	if ref.Kind != "" && ref.Name == "" {
		ref.Name = "(no name)"
	}
	return ref
}

func (p *parser) object(v *value) {
	if v.kind != mapValue {
		p.fail(v.line, kube.Ref{}, "", "expected an object with apiVersion, kind and metadata, got %s", v.describe())
		return
	}
	name, version := v.get("kind").text(), v.get("apiVersion").text()
	if name == "" {
		p.fail(v.line, kube.Ref{}, "", "an object without kind: expected one of %s", kindNames())
		return
	}
	if items := v.get("items"); strings.HasSuffix(name, "List") {
		p.list(v, items)
		return
	}
	k, ok := kinds[name]
	if !ok {
		p.fail(v.line, refOf(v), "kind", "kind %q is not one Tapestry knows: expected one of %s", name, kindNames())
		return
	}
	if version != k.apiVersion {
		line := v.line
		if f := v.get("apiVersion"); f != nil {
			line = f.line
		}
		p.fail(line, refOf(v), "apiVersion", "expected %q for kind %s, got %q", k.apiVersion, name, version)
		return
	}
	p.decode(v, k)
}

func kindNames() string { return strings.Join(slices.Sorted(maps.Keys(kinds)), ", ") }

func (p *parser) list(v, items *value) {
	if items == nil || items.kind != listValue {
		p.fail(v.line, kube.Ref{}, "", "kind %s needs a list of items", v.get("kind").text())
		return
	}
	// The items of a PodList say nothing of their kind: the list does.
	kindName := strings.TrimSuffix(v.get("kind").text(), "List")
	for _, item := range items.items {
		if _, ok := kinds[kindName]; ok && item.kind == mapValue && item.get("kind") == nil && item.get("apiVersion") == nil {
			item.fields = append(item.fields,
				field{"kind", item.line, &value{line: item.line, scalar: kindName}},
				field{"apiVersion", item.line, &value{line: item.line, scalar: kinds[kindName].apiVersion}})
		}
		p.object(item)
	}
}

func (p *parser) decode(v *value, k kind) {
	obj := k.new()
	strict, err := json.UnmarshalStrict(v.appendJSON(nil), obj)
	if err != nil || len(strict) > 0 {
		found := explain(v, reflect.TypeOf(obj))
		for _, m := range found {
			p.fail(m.line, refOf(v), m.path, "%s", m.msg)
		}
		if len(found) == 0 {
			p.fail(v.line, refOf(v), "", "cannot be decoded: %v", errors.Join(append(strict, err)...))
		}
		return
	}
	p.add(v.line, k, obj)
}

// add puts a decoded object in, after what an API server would have done to it.
func (p *parser) add(line int, k kind, obj metav1.Object) {
	if s, ok := obj.(*corev1.Secret); ok && len(s.StringData) > 0 {
		if s.Data == nil {
			s.Data = map[string][]byte{}
		}
		for key, text := range s.StringData {
			s.Data[key] = []byte(text)
		}
		s.StringData = nil
	}
	if !k.cluster && obj.GetNamespace() == "" {
		obj.SetNamespace(metav1.NamespaceDefault)
	}
	ref := kube.RefOf(obj)
	switch first, twice := p.seen[ref]; {
	case obj.GetName() == "":
		p.fail(line, kube.Ref{Kind: ref.Kind, Namespace: ref.Namespace, Name: "(no name)"}, "metadata.name", "is missing: give the object a name")
	case k.cluster && obj.GetNamespace() != "":
		p.fail(line, ref, "metadata.namespace", "kind %s belongs to no namespace: remove the field", ref.Kind)
	case twice:
		p.fail(line, ref, "", "already defined at %s: keep one of the two", first)
	default:
		p.seen[ref] = p.at(line)
		p.objects.Add(obj, p.at(line))
	}
}

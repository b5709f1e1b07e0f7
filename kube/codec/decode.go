package codec

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"reflect"
	"slices"
	"strconv"
	"strings"

	"go.yaml.in/yaml/v3"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/json"

	"tapestry.dev/tapestry/kube"
)

// kindIn returns the kind of that name and version, and whether a file may hold it.
func kindIn(name, version string) (*kube.Kind, bool) {
	k := kube.KindNamed(name)
	return k, k != nil && k.Use&kube.InFiles != 0 && k.Group.Has(version)
}

// Decode returns the objects of one file, sorted by namespace and name. The error joins all mistakes that were found,
// each a kube.Problem with file and line; the objects without mistakes are returned along with it. name appears in
// messages only.
func Decode(name string, data []byte) (kube.Objects, error) {
	for _, read := range []func(*parser, []byte) bool{(*parser).jsonStream, (*parser).plainStream, (*parser).yamlStream} {
		p := parser{name: name, seen: map[kube.Ref]string{}}
		if read(&p, data) {
			objs := p.objects.Objects()
			objs.Sort()
			return objs, errors.Join(p.errs...)
		}
	}
	panic("unreachable: yamlStream reads everything")
}

type parser struct {
	name    string
	objects kube.Builder
	seen    map[kube.Ref]string
	errs    []error
}

func (p *parser) fail(line int, ref kube.Ref, path, format string, args ...any) {
	p.errs = append(p.errs, mistakeError{kube.Problem{
		Severity: kube.Error, Object: ref, Origin: p.at(line), Field: path, Message: fmt.Sprintf(format, args...),
	}})
}

func (p *parser) at(line int) string { return p.name + ":" + strconv.Itoa(line) }

// mistakeError is a Problem that need not belong to an object.
type mistakeError struct{ kube.Problem }

func (e mistakeError) Error() string {
	if e.Object == (kube.Ref{}) {
		return e.Origin + ": " + e.Message
	}
	return e.Problem.String()
}

func (e mistakeError) Unwrap() error { return e.Problem }

// jsonStream reads what Encode writes: one JSON object per document, many times faster than YAML. It returns false
// when the file is something else or has any mistake, which another reader then explains.
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
	k, ok := kindIn(name, version)
	return ok && p.strictly(line, k, data)
}

// jsonHead finds kind and apiVersion at the beginning of an object, where Encode puts them. That saves a pass over
// the rest.
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

// strictly decodes JSON of kind k and adds the object; it returns false when anything is wrong with the JSON.
func (p *parser) strictly(line int, k *kube.Kind, data []byte) bool {
	obj := k.New()
	strict, err := json.UnmarshalStrict(data, obj)
	if err != nil || len(strict) > 0 {
		return false
	}
	p.add(line, k, obj)
	return true
}

// yamlStream reads every file and explains every mistake.
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

// refOf names an object as precisely as its text allows.
func refOf(v *value) kube.Ref {
	meta := v.get("metadata")
	ref := kube.Ref{Kind: v.get("kind").text(), Namespace: meta.get("namespace").text(), Name: meta.get("name").text()}
	if k := kube.KindNamed(ref.Kind); k != nil && !k.ClusterScoped && ref.Namespace == "" {
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
	k, ok := kindIn(name, version)
	switch group := (kube.Group{Version: version}).Name(); {
	case ok:
		p.decode(v, k)
	case k == nil || k.Use&kube.InFiles == 0 && group != k.Group.Name():
		p.fail(v.line, refOf(v), "kind", "kind %q is not one Tapestry knows: expected one of %s", name, kindNames())
	case k.Use&kube.NotServed != 0:
		p.fail(v.line, refOf(v), "kind", "kind %s is known and not served yet: remove the object; served are %s", name, kindNames())
	case k.Use&kube.InFiles == 0:
		p.fail(v.line, refOf(v), "kind", "only an API server uses kind %s: remove the object", name)
	default:
		line := v.line
		if f := v.get("apiVersion"); f != nil {
			line = f.line
		}
		p.fail(line, refOf(v), "apiVersion", "expected %q for kind %s, got %q", k.Group.Version, name, version)
	}
}

func kindNames() string {
	var names []string
	for _, k := range kube.Kinds() {
		if k.Use&kube.InFiles != 0 {
			names = append(names, k.Name)
		}
	}
	slices.Sort(names)
	return strings.Join(names, ", ")
}

func (p *parser) list(v, items *value) {
	if items == nil || items.kind != listValue {
		p.fail(v.line, kube.Ref{}, "", "kind %s needs a list of items", v.get("kind").text())
		return
	}
	// The items of a PodList have no kind of their own: it follows from the list's.
	k := kube.KindNamed(strings.TrimSuffix(v.get("kind").text(), "List"))
	for _, item := range items.items {
		if k != nil && item.kind == mapValue && item.get("kind") == nil && item.get("apiVersion") == nil {
			item.fields = append(item.fields,
				field{"kind", item.line, &value{line: item.line, scalar: k.Name}},
				field{"apiVersion", item.line, &value{line: item.line, scalar: k.Group.Version}})
		}
		p.object(item)
	}
}

func (p *parser) decode(v *value, k *kube.Kind) {
	obj := k.New()
	strict, err := json.UnmarshalStrict(v.appendJSON(nil), obj)
	if err != nil || len(strict) > 0 {
		found := explain(v, reflect.TypeOf(obj))
		for _, m := range found {
			p.fail(m.line, refOf(v), m.path, "%s", m.msg)
		}
		switch _, secret := obj.(*corev1.Secret); {
		case len(found) > 0:
		case secret: // the error may quote its content
			p.fail(v.line, refOf(v), "", "cannot be decoded")
		default:
			p.fail(v.line, refOf(v), "", "cannot be decoded: %v", errors.Join(append(strict, err)...))
		}
		return
	}
	p.add(v.line, k, obj)
}

// add adds a decoded object, after the conversions that an API server would make.
func (p *parser) add(line int, k *kube.Kind, obj kube.Object) {
	if s, ok := obj.(*corev1.Secret); ok && len(s.StringData) > 0 {
		if s.Data == nil {
			s.Data = map[string][]byte{}
		}
		for key, text := range s.StringData {
			s.Data[key] = []byte(text)
		}
		s.StringData = nil
	}
	if !k.ClusterScoped && obj.GetNamespace() == "" {
		obj.SetNamespace(metav1.NamespaceDefault)
	}
	ref := kube.RefOf(obj)
	switch first, twice := p.seen[ref]; {
	case obj.GetName() == "":
		p.fail(line, kube.Ref{Kind: ref.Kind, Namespace: ref.Namespace, Name: "(no name)"}, "metadata.name", "is missing: give the object a name")
	case k.ClusterScoped && obj.GetNamespace() != "":
		p.fail(line, ref, "metadata.namespace", "kind %s belongs to no namespace: remove the field", ref.Kind)
	case twice:
		p.fail(line, ref, "", "already defined at %s: keep one of the two", first)
	default:
		p.seen[ref] = p.at(line)
		p.objects.Add(obj, p.at(line))
	}
}

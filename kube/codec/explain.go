package codec

import (
	"encoding/base64"
	"encoding/json"
	"fmt"
	"reflect"
	"slices"
	"strconv"
	"strings"

	corev1 "k8s.io/api/core/v1"
)

// mistake is one place in a document that does not fit the Go type it is decoded into.
type mistake struct {
	line int
	path string
	msg  string
}

// explain walks v along the type t and finds everything that the strict decoder would refuse.
func explain(v *value, t reflect.Type) []mistake {
	e := explainer{secret: t == reflect.TypeFor[*corev1.Secret]()}
	e.walk(v, t, "")
	return e.found
}

type explainer struct {
	found  []mistake
	secret bool // messages must not quote the content
}

// describe returns a description of v for messages. For a value of a Secret it names only the type.
func (e *explainer) describe(v *value) string {
	if e.secret {
		return v.sort()
	}
	return v.describe()
}

func (e *explainer) add(line int, path, format string, args ...any) {
	e.found = append(e.found, mistake{line, path, fmt.Sprintf(format, args...)})
}

var unmarshaler = reflect.TypeFor[json.Unmarshaler]()

func (e *explainer) walk(v *value, t reflect.Type, path string) {
	for t.Kind() == reflect.Pointer {
		t = t.Elem()
	}
	if v.kind == scalarValue && v.scalar == nil {
		return // null is the zero value of everything
	}
	if reflect.PointerTo(t).Implements(unmarshaler) {
		switch err := json.Unmarshal(v.appendJSON(nil), reflect.New(t).Interface()); {
		case err == nil:
		case e.secret:
			e.add(v.line, path, "expected a value of type %s, got %s", t.Name(), e.describe(v))
		default:
			e.add(v.line, path, "expected a value of type %s, got %s: %v", t.Name(), e.describe(v), err)
		}
		return
	}
	switch t.Kind() {
	case reflect.Struct:
		e.structure(v, t, path)
	case reflect.Map:
		e.mapping(v, t, path)
	case reflect.Slice:
		e.list(v, t, path)
	case reflect.String:
		e.text(v, path)
	case reflect.Bool:
		if _, ok := v.scalar.(bool); !ok {
			e.add(v.line, path, "expected true or false, got %s", e.describe(v))
		}
	case reflect.Int, reflect.Int8, reflect.Int16, reflect.Int32, reflect.Int64,
		reflect.Uint, reflect.Uint8, reflect.Uint16, reflect.Uint32, reflect.Uint64,
		reflect.Float32, reflect.Float64:
		e.number(v, t, path)
	}
}

func (e *explainer) structure(v *value, t reflect.Type, path string) {
	if v.kind != mapValue {
		e.add(v.line, path, "expected a mapping, got %s", e.describe(v))
		return
	}
	types := map[string]reflect.Type{}
	jsonFields(t, types)
	for _, f := range v.fields {
		p := join(path, f.key)
		ft, ok := types[f.key]
		if !ok {
			e.add(f.line, p, "unknown field%s", suggest(f.key, types))
			continue
		}
		e.walk(f.value, ft, p)
	}
}

func (e *explainer) mapping(v *value, t reflect.Type, path string) {
	if v.kind != mapValue {
		e.add(v.line, path, "expected a mapping, got %s", e.describe(v))
		return
	}
	for _, f := range v.fields {
		e.walk(f.value, t.Elem(), path+"["+f.key+"]")
	}
}

func (e *explainer) list(v *value, t reflect.Type, path string) {
	if t.Elem().Kind() == reflect.Uint8 {
		s, ok := v.scalar.(string)
		if !ok {
			e.add(v.line, path, "expected a string in base64, got %s", e.describe(v))
		} else if _, err := base64.StdEncoding.DecodeString(s); err != nil {
			e.add(v.line, path, "not base64: %v: encode the value, or write it as it is under stringData", err)
		}
		return
	}
	if v.kind != listValue {
		e.add(v.line, path, "expected a list, got %s: begin each item with a dash", e.describe(v))
		return
	}
	for i, item := range v.items {
		e.walk(item, t.Elem(), path+"["+strconv.Itoa(i)+"]")
	}
}

func (e *explainer) text(v *value, path string) {
	if _, ok := v.scalar.(string); ok {
		return
	}
	hint := ""
	if v.kind == scalarValue {
		hint = ": put it in quotes"
	}
	e.add(v.line, path, "expected a string, got %s%s", e.describe(v), hint)
}

func (e *explainer) number(v *value, t reflect.Type, path string) {
	switch v.scalar.(type) {
	case int, int64, uint64, float64:
	default:
		e.add(v.line, path, "expected a number, got %s", e.describe(v))
		return
	}
	if err := json.Unmarshal(v.appendJSON(nil), reflect.New(t).Interface()); err != nil {
		e.add(v.line, path, "%v does not fit: expected a number of type %s", v.scalar, t.Kind())
	}
}

// jsonFields collects the fields of a struct by their JSON names, including the fields of embedded structs.
func jsonFields(t reflect.Type, into map[string]reflect.Type) {
	for i := range t.NumField() {
		f := t.Field(i)
		name, options, _ := strings.Cut(f.Tag.Get("json"), ",")
		if f.Anonymous && (name == "" || strings.Contains(options, "inline")) {
			jsonFields(f.Type, into)
		} else if name != "" && name != "-" {
			into[name] = f.Type
		}
	}
}

func join(path, key string) string {
	if path == "" {
		return key
	}
	return path + "." + key
}

// suggest names the known field that was probably meant: at most two edits away, or a third of the length of a long
// name.
func suggest(key string, known map[string]reflect.Type) string {
	best, least := "", max(2, len(key)/3)+1
	names := make([]string, 0, len(known))
	for name := range known {
		names = append(names, name)
	}
	slices.Sort(names)
	for _, name := range names {
		if d := distance(strings.ToLower(key), strings.ToLower(name)); d < least && d < len(name) {
			best, least = name, d
		}
	}
	if best == "" {
		return ""
	}
	return fmt.Sprintf(" (did you mean %q?)", best)
}

// distance returns the Levenshtein distance of two words: the number of insertions, deletions and replacements
// between them.
func distance(a, b string) int {
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		diagonal := row[0]
		row[0] = i + 1
		for j := range len(b) {
			replace := diagonal
			if a[i] != b[j] {
				replace++
			}
			diagonal = row[j+1]
			row[j+1] = min(replace, row[j]+1, row[j+1]+1)
		}
	}
	return row[len(b)]
}

package codec

import (
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"strconv"

	"go.yaml.in/yaml/v3"
)

// value is one YAML node with its aliases and merge keys resolved: what JSON can express, with line numbers.
type value struct {
	line   int
	kind   valueKind
	scalar any      // scalarValue: nil, bool, int, int64, uint64, float64 or string
	fields []field  // mapValue, in the order of the file
	items  []*value // listValue
}

type valueKind uint8

const (
	scalarValue valueKind = iota
	mapValue
	listValue
)

type field struct {
	key   string
	line  int
	value *value
}

// get returns a field of a mapping, or nil when there is none.
func (v *value) get(key string) *value {
	if v == nil {
		return nil
	}
	for i := range v.fields {
		if v.fields[i].key == key {
			return v.fields[i].value
		}
	}
	return nil
}

// text returns a string scalar, or "" for everything else.
func (v *value) text() string {
	if v == nil {
		return ""
	}
	s, _ := v.scalar.(string)
	return s
}

// The limits of one document. Every use of an alias counts again, because a few lines can otherwise mean gigabytes.
const (
	maxNodes = 1 << 18
	maxDepth = 200
)

// lineError is a mistake in one line of a file.
type lineError struct {
	line int
	msg  string
}

// resolver turns YAML nodes into values.
type resolver struct {
	nodes int
	errs  []*lineError
}

func (r *resolver) fail(line int, format string, args ...any) {
	r.errs = append(r.errs, &lineError{line, fmt.Sprintf(format, args...)})
}

var errTooLarge = errors.New("too large")

func (r *resolver) value(n *yaml.Node, depth int) (*value, error) {
	r.nodes++
	if depth > maxDepth || r.nodes > maxNodes {
		return nil, errTooLarge
	}
	switch n.Kind {
	case yaml.AliasNode:
		return r.value(n.Alias, depth+1)
	case yaml.MappingNode:
		v := &value{line: n.Line, kind: mapValue}
		return v, r.mapping(n, v, depth)
	case yaml.SequenceNode:
		v := &value{line: n.Line, kind: listValue}
		for _, c := range n.Content {
			item, err := r.value(c, depth+1)
			if err != nil {
				return nil, err
			}
			v.items = append(v.items, item)
		}
		return v, nil
	}
	return r.scalar(n), nil
}

func (r *resolver) mapping(n *yaml.Node, v *value, depth int) error {
	seen := map[string]int{}
	var merges []*yaml.Node
	for i := 0; i+1 < len(n.Content); i += 2 {
		key, val := n.Content[i], n.Content[i+1]
		if key.Kind == yaml.AliasNode {
			key = key.Alias
		}
		if key.Kind != yaml.ScalarNode {
			r.fail(key.Line, "a key must be a plain word: found a list or mapping in its place")
			continue
		}
		if key.Tag == "!!merge" {
			merges = append(merges, val)
			continue
		}
		if first, ok := seen[key.Value]; ok {
			r.fail(key.Line, "key %q is here twice, first in line %d: keep one of the two", key.Value, first)
			continue
		}
		seen[key.Value] = key.Line
		child, err := r.value(val, depth+1)
		if err != nil {
			return err
		}
		v.fields = append(v.fields, field{key.Value, key.Line, child})
	}
	for _, m := range merges {
		if err := r.merge(m, v, seen, depth); err != nil {
			return err
		}
	}
	return nil
}

// merge adds the fields of a merge key ("<<"). Fields of the mapping itself, and of earlier merges, take precedence.
func (r *resolver) merge(n *yaml.Node, v *value, seen map[string]int, depth int) error {
	from, err := r.value(n, depth+1)
	if err != nil {
		return err
	}
	sources := []*value{from}
	if from.kind == listValue {
		sources = from.items
	}
	for _, s := range sources {
		if s.kind != mapValue {
			r.fail(n.Line, "a merge key (<<) takes a mapping or a list of mappings")
			continue
		}
		for _, f := range s.fields {
			if _, ok := seen[f.key]; !ok {
				seen[f.key] = f.line
				v.fields = append(v.fields, f)
			}
		}
	}
	return nil
}

func (r *resolver) scalar(n *yaml.Node) *value {
	v := &value{line: n.Line, scalar: n.Value}
	switch n.ShortTag() {
	case "!!null", "!!bool", "!!int", "!!float":
		var x any
		if err := n.Decode(&x); err != nil {
			r.fail(n.Line, "the value cannot be read as %s", n.ShortTag()) // it may be a Secret's
			return v
		}
		if f, ok := x.(float64); ok && (math.IsNaN(f) || math.IsInf(f, 0)) {
			r.fail(n.Line, "%s is not a number Kubernetes knows", n.Value)
			return v
		}
		v.scalar = x
	}
	return v
}

// appendJSON writes v as JSON.
func (v *value) appendJSON(b []byte) []byte {
	switch v.kind {
	case mapValue:
		b = append(b, '{')
		for i := range v.fields {
			if i > 0 {
				b = append(b, ',')
			}
			b = appendString(b, v.fields[i].key)
			b = append(b, ':')
			b = v.fields[i].value.appendJSON(b)
		}
		return append(b, '}')
	case listValue:
		b = append(b, '[')
		for i, item := range v.items {
			if i > 0 {
				b = append(b, ',')
			}
			b = item.appendJSON(b)
		}
		return append(b, ']')
	}
	switch x := v.scalar.(type) {
	case bool:
		return strconv.AppendBool(b, x)
	case int:
		return strconv.AppendInt(b, int64(x), 10)
	case int64:
		return strconv.AppendInt(b, x, 10)
	case uint64:
		return strconv.AppendUint(b, x, 10)
	case float64:
		return strconv.AppendFloat(b, x, 'g', -1, 64)
	case string:
		return appendString(b, x)
	}
	return append(b, "null"...)
}

func appendString(b []byte, s string) []byte {
	quoted, err := json.Marshal(s)
	if err != nil { // json.Marshal fails for no string
		return append(b, `""`...)
	}
	return append(b, quoted...)
}

// sort names the type of v, without its content.
func (v *value) sort() string {
	if v.kind != scalarValue || v.scalar == nil {
		return v.describe()
	}
	switch v.scalar.(type) {
	case bool:
		return "a boolean"
	case string:
		return "a string"
	}
	return "a number"
}

// describe returns a description of v for messages.
func (v *value) describe() string {
	switch v.kind {
	case mapValue:
		return "a mapping"
	case listValue:
		return "a list"
	}
	switch x := v.scalar.(type) {
	case nil:
		return "nothing"
	case bool:
		return fmt.Sprintf("the boolean %t", x)
	case string:
		if len(x) > 40 {
			return fmt.Sprintf("the string %q...", x[:40])
		}
		return fmt.Sprintf("the string %q", x)
	}
	return fmt.Sprintf("the number %v", v.scalar)
}

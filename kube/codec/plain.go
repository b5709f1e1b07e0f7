package codec

import (
	"bytes"
	"slices"
)

// plain turns the YAML that programs print (and most people write) into JSON in one pass over the text, many times
// faster than a complete parser. It understands blocks of mappings and lists by indentation, plain and simply quoted
// ASCII scalars on one line, {} and []. It never guesses: it gives up, also at mistakes, wherever a complete parser
// might read something else, and then the complete parser reads the file from its beginning.
type plain struct {
	rest   []byte // after the current line
	number int    // of the current line, counted from 1
	indent int
	text   []byte // the current line without indentation; empty at the end of a document
	end    bool   // the file has ended
	out    []byte
	nodes  int
	// kind and version are the kind and apiVersion of the document's object.
	kind, version string
}

// maxKeys is the number of keys up to which a mapping is plain. Each key is compared with all others.
const maxKeys = 64

// plainStream reads a whole file; it returns false when the file is not plain or has any mistake.
func (p *parser) plainStream(data []byte) bool {
	d := plain{rest: data, out: make([]byte, 0, len(data))}
	for !d.end {
		if !d.advance() {
			return false
		}
		if len(d.text) == 0 {
			continue // an empty document
		}
		line := d.number
		d.out, d.nodes, d.kind, d.version = d.out[:0], 0, "", ""
		if d.indent != 0 || !d.mapping(0, 1) || len(d.text) != 0 {
			return false
		}
		k, ok := kindIn(d.kind, d.version)
		if !ok || !p.strictly(line, k, d.out) {
			return false
		}
	}
	return len(p.errs) == 0
}

// advance goes to the next line that is not blank or a comment. text is empty between documents and at the end of the
// file.
func (d *plain) advance() bool {
	for len(d.rest) > 0 {
		line := d.rest
		if i := bytes.IndexByte(line, '\n'); i >= 0 {
			line, d.rest = line[:i], line[i+1:]
		} else {
			d.rest = nil
		}
		d.number++
		d.indent = 0
		for d.indent < len(line) && line[d.indent] == ' ' {
			d.indent++
		}
		d.text = line[d.indent:]
		switch {
		case len(d.text) == 0:
			continue
		case d.text[0] == '#':
			if !printable(d.text) {
				return false
			}
			continue
		case d.indent == 0 && string(d.text) == "---":
			d.text = nil
			return true
		}
		return printable(d.text) && d.text[len(d.text)-1] != ' '
	}
	d.text, d.end = nil, true
	return true
}

func printable(text []byte) bool {
	for _, c := range text {
		if c < ' ' || c > '~' {
			return false
		}
	}
	return true
}

func (d *plain) item() bool { return d.text[0] == '-' && (len(d.text) == 1 || d.text[1] == ' ') }

// count enforces the limits of a document, as the complete parser does.
func (d *plain) count(depth int) bool {
	d.nodes++
	return d.nodes <= maxNodes && depth <= maxDepth
}

// mapping reads, from the current line on, a mapping whose keys stand at indent.
func (d *plain) mapping(indent, depth int) bool {
	if !d.count(depth) {
		return false
	}
	var keys [maxKeys][]byte
	n := 0
	for len(d.text) > 0 && d.indent == indent && !d.item() {
		key, rest := splitKey(d.text)
		if key == nil || n == maxKeys || slices.ContainsFunc(keys[:n], func(k []byte) bool { return bytes.Equal(k, key) }) {
			return false
		}
		keys[n] = key
		n++
		d.out = append(d.out, "{,"[min(n-1, 1)], '"')
		d.out = append(append(d.out, key...), '"', ':')
		if depth == 1 {
			switch string(key) {
			case "kind":
				d.kind = string(rest)
			case "apiVersion":
				d.version = string(rest)
			}
		}
		if len(rest) > 0 {
			if !d.scalar(rest, depth+1) || !d.advance() {
				return false
			}
		} else if !d.advance() || !d.nested(indent, depth+1) {
			return false
		}
		if len(d.text) > 0 && d.indent > indent {
			return false // the scalar continues, or the indentation is wrong
		}
	}
	d.out = append(d.out, '}')
	return n > 0
}

// nested reads the value of a key at indent, when it does not stand on the key's own line.
func (d *plain) nested(indent, depth int) bool {
	switch {
	case len(d.text) > 0 && d.indent > indent && !d.item():
		return d.mapping(d.indent, depth)
	case len(d.text) > 0 && d.indent >= indent && d.item():
		return d.list(d.indent, depth)
	}
	d.out = append(d.out, "null"...)
	return d.count(depth)
}

// list reads a list whose dashes stand at indent.
func (d *plain) list(indent, depth int) bool {
	if !d.count(depth) {
		return false
	}
	for first := true; len(d.text) > 0 && d.indent == indent && d.item(); first = false {
		inner := bytes.TrimLeft(d.text[1:], " ")
		if len(inner) == 0 {
			return false
		}
		if first {
			d.out = append(d.out, '[')
		} else {
			d.out = append(d.out, ',')
		}
		if key, _ := splitKey(inner); key != nil {
			d.indent += len(d.text) - len(inner)
			d.text = inner
			if !d.mapping(d.indent, depth+1) {
				return false
			}
		} else if !d.scalar(inner, depth+1) || !d.advance() {
			return false
		}
		if len(d.text) > 0 && d.indent > indent {
			return false
		}
	}
	d.out = append(d.out, ']')
	return true
}

// splitKey returns the key that a line begins with and the text after it, or no key when the line begins with
// anything else.
func splitKey(text []byte) (key, rest []byte) {
	const longest = 256 // YAML has a limit too: a key of more than 1024 bytes is an error
	for i, c := range text[:min(len(text), longest)] {
		switch {
		case 'a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' || '0' <= c && c <= '9':
		case i > 0 && (c == '.' || c == '/' || c == '-' || c == '_'):
		case i > 0 && c == ':' && i+1 == len(text):
			return text[:i], nil
		case i > 0 && c == ':' && text[i+1] == ' ':
			return text[:i], bytes.TrimLeft(text[i+1:], " ")
		default:
			return nil, nil
		}
	}
	return nil, nil
}

// scalar writes a value that stands on one line.
func (d *plain) scalar(text []byte, depth int) bool {
	if !d.count(depth) {
		return false
	}
	switch text[0] {
	case '"', '\'':
		last := len(text) - 1
		if last == 0 || text[last] != text[0] || bytes.ContainsAny(text[1:last], `"'\`) {
			return false
		}
		d.quote(text[1:last])
		return true
	case '{', '[':
		if string(text) != "{}" && string(text) != "[]" {
			return false
		}
		d.out = append(d.out, text...)
		return true
	}
	switch judgePlain(text) {
	case literalScalar:
		d.out = append(d.out, text...)
	case textScalar:
		d.quote(text)
	default:
		return false
	}
	return true
}

func (d *plain) quote(text []byte) {
	d.out = append(append(append(d.out, '"'), text...), '"')
}

type plainScalar uint8

const (
	unclearScalar plainScalar = iota
	literalScalar             // valid JSON as it stands
	textScalar
)

// judgePlain classifies a scalar without quotes, by YAML 1.2 with the parts of 1.1 that go.yaml.in/yaml/v3 keeps.
func judgePlain(text []byte) plainScalar {
	if bytes.ContainsAny(text, `"\`) || bytes.Contains(text, []byte(": ")) || bytes.Contains(text, []byte(" #")) ||
		text[len(text)-1] == ':' {
		return unclearScalar
	}
	switch c := text[0]; {
	case 'a' <= c && c <= 'z' || 'A' <= c && c <= 'Z':
		switch string(text) {
		case "true", "false", "null":
			return literalScalar
		case "True", "TRUE", "False", "FALSE", "Null", "NULL":
			return unclearScalar
		}
		return textScalar
	case c == '/':
		return textScalar
	case '0' <= c && c <= '9':
		return judgeNumber(text)
	}
	return unclearScalar
}

// judgeNumber classifies a scalar that begins with a digit.
func judgeNumber(text []byte) plainScalar {
	const safe = 15 // a number with so few digits fits every type
	dots, digits := 0, 0
	for i, c := range text {
		switch {
		case '0' <= c && c <= '9':
			digits++
		case c == '.':
			if dots++; dots == 2 {
				return textScalar // an address or a version
			}
		case c == '-' && text[i-1] != 'e' && text[i-1] != 'E':
			return textScalar // a number has no minus sign there: this is a UID
		}
	}
	if digits == len(text) && digits <= safe && (text[0] != '0' || digits == 1) {
		return literalScalar
	}
	return unclearScalar
}

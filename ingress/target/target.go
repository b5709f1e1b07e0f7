// Package target parses request targets. A Target has the path that the route is found by, and the bytes that the
// backend gets. The package is pure.
//
// # What is done with a path
//
// The backend gets the bytes that the client sent, query included, with one change: dot segments are removed before the
// route is looked for, as RFC 3986 section 5.2.4 says, so that no client reaches a path by naming another one. For the
// same reason a path is refused when some backends would read a dot segment in it and others would not.
//
//	/a/./b, /a/x/../b, /a/%2e/b      become /a/b, for the route and for the backend
//	/.., /a/../../b                  refused: the path leads out of the root
//	/a/..%2Fb, /a/..\b, /a/..%5Cb    refused: dot segments behind an encoded slash or a backslash
//	/a/..;x/b                        refused: a dot segment with a parameter
//	/a%00, %zz, space, control, #    refused: not allowed in a path
//	/a%2Fb                           one element: an encoded slash does not separate elements
//	/a%252e                          the element "a%2e": nothing is decoded twice
//	/a//b, //b                       elements may be empty; slashes are not merged
//	/a;x=1                           one element: a parameter is a part of it
//	/a\b, /a|b, /é, /a"b             unchanged, though RFC 3986 wants these characters encoded
//
// Routes are found by the decoded path, in which an encoded slash stays %2F and an encoded percent sign %25. Rule
// brings the path of a rule into the same form, so a rule may be written with or without escapes.
package target

import (
	"errors"
	"fmt"
	"net/http"
	"strings"
)

// Target is what a request asks for.
type Target struct {
	// Raw is the request target for the backend: a path with its query, or "*".
	Raw string
	// Path is the path that routes are found by: decoded, without dot segments and query. For "*" it is "/".
	Path string
}

// Parse parses the request target of an HTTP/1.1 request line, or the :path of HTTP/2. Its error is a sentence for the
// client.
func Parse(method, uri string) (Target, error) {
	if i := strings.IndexFunc(uri, forbidden); i >= 0 {
		return Target{}, fmt.Errorf("the request target holds the character %q: expected it to be encoded", uri[i])
	}
	path, query := uri, ""
	if i := strings.IndexByte(uri, '?'); i >= 0 {
		path, query = uri[:i], uri[i:]
	}
	if !strings.HasPrefix(path, "/") {
		rest, err := originForm(method, path, query)
		if err != nil {
			return Target{}, err
		}
		if path = rest; path == "*" {
			return Target{Raw: "*", Path: "/"}, nil
		}
	}
	if plain(path) {
		return Target{Raw: path + query, Path: path}, nil
	}
	raw, decoded, err := clean(path)
	if err != nil {
		return Target{}, err
	}
	return Target{Raw: raw + query, Path: decoded}, nil
}

// forbidden reports whether c is a character that a request line cannot carry, or begins a fragment, which clients must
// not send.
func forbidden(c rune) bool { return c <= ' ' || c == 0x7f || c == '#' }

// originForm returns the path of a target that does not begin with "/": of one in absolute form, or of "*" (RFC 9112
// section 3.2).
func originForm(method, path, query string) (string, error) {
	if path == "*" && query == "" && method == http.MethodOptions {
		return "*", nil
	}
	scheme, rest, ok := strings.Cut(path, "://")
	if !ok || !strings.EqualFold(scheme, "http") && !strings.EqualFold(scheme, "https") {
		return "", errors.New("the request target is neither a path nor an http or https URL")
	}
	authority := rest
	if i := strings.IndexByte(rest, '/'); i >= 0 {
		authority, rest = rest[:i], rest[i:]
	} else if rest = "/"; method == http.MethodOptions && query == "" {
		rest = "*" // RFC 9112 section 3.2.4
	}
	if strings.Contains(authority, "@") {
		return "", errors.New("the request target names a user, which has no meaning here (RFC 9110 section 4.2.4)")
	}
	return rest, nil
}

// plain reports whether a path equals its decoded form and holds no dot segment, as those of almost all requests.
func plain(path string) bool {
	for i := 0; i < len(path); i++ {
		switch c := path[i]; {
		case c == '%', c == '\\':
			return false
		case c == '/' && i+1 < len(path) && path[i+1] == '.':
			return false
		}
	}
	return true
}

// clean removes the dot segments of a path. It returns the rest as it was sent (raw), and decoded.
func clean(path string) (raw, decoded string, err error) {
	var raws, decodeds []string
	elements := strings.Split(path[1:], "/")
	for i, sent := range elements {
		text, err := decode(sent)
		if err != nil {
			return "", "", err
		}
		last := i == len(elements)-1
		switch text {
		case ".", "..":
			if text == ".." {
				if len(raws) == 0 {
					return "", "", errors.New("the path leads out of the root by its dot segments")
				}
				raws, decodeds = raws[:len(raws)-1], decodeds[:len(decodeds)-1]
			}
			if last { // the path names a directory, and so ends with a slash
				raws, decodeds = append(raws, ""), append(decodeds, "")
			}
			continue
		}
		if hidesDots(text) {
			return "", "", fmt.Errorf("the path element %q hides a dot segment: expected none", sent)
		}
		raws, decodeds = append(raws, sent), append(decodeds, protect(text))
	}
	return "/" + strings.Join(raws, "/"), "/" + strings.Join(decodeds, "/"), nil
}

// decode returns an element with its escapes decoded.
func decode(element string) (string, error) {
	if !strings.Contains(element, "%") {
		return element, nil
	}
	out := make([]byte, 0, len(element))
	for i := 0; i < len(element); i++ {
		if element[i] != '%' {
			out = append(out, element[i])
			continue
		}
		c, ok := escape(element[i:])
		if !ok {
			return "", fmt.Errorf("the path element %q holds a percent sign without two hexadecimal digits", element)
		}
		if c == 0 {
			return "", errors.New("the path holds an encoded zero byte")
		}
		out = append(out, c)
		i += 2
	}
	return string(out), nil
}

// escape returns the byte whose escape (%XX) s begins with. It reports false when the two digits are not hexadecimal;
// it does not check the percent sign.
func escape(s string) (byte, bool) {
	if len(s) < 3 {
		return 0, false
	}
	a, okA := hex(s[1])
	b, okB := hex(s[2])
	return a<<4 | b, okA && okB
}

func hex(c byte) (byte, bool) {
	switch {
	case '0' <= c && c <= '9':
		return c - '0', true
	case 'a' <= c && c <= 'f':
		return c - 'a' + 10, true
	case 'A' <= c && c <= 'F':
		return c - 'A' + 10, true
	}
	return 0, false
}

// hidesDots reports whether some backends would find a dot segment in a decoded element that is not one itself: those
// to which an encoded slash or a backslash separates elements, and those which cut off parameters first.
func hidesDots(text string) bool {
	if !strings.Contains(text, ".") {
		return false
	}
	for part := range strings.FieldsFuncSeq(text, func(c rune) bool { return c == '/' || c == '\\' }) {
		name, _, _ := strings.Cut(part, ";")
		if name == "." || name == ".." {
			return true
		}
	}
	return false
}

// protect encodes slashes and percent signs in a decoded element, so that it differs from two elements, and from an
// element that was encoded twice.
func protect(text string) string {
	if !strings.ContainsAny(text, "/%") {
		return text
	}
	return strings.NewReplacer("%", "%25", "/", "%2F").Replace(text)
}

// Rule returns the path of a rule in the form of Target.Path. A percent sign that begins no escape stands for itself.
// Dot segments stay; a rule with one matches no request.
func Rule(path string) string {
	if !strings.Contains(path, "%") {
		return path
	}
	elements := strings.Split(path, "/")
	for i, e := range elements {
		var text strings.Builder
		for j := 0; j < len(e); j++ {
			if c, ok := escape(e[j:]); e[j] == '%' && ok {
				text.WriteByte(c)
				j += 2
				continue
			}
			text.WriteByte(e[j])
		}
		elements[i] = protect(text.String())
	}
	return strings.Join(elements, "/")
}

// Package visibletest has the worst text that others may write. It puts this text wherever there is room for text, and
// finds what was shown of it.
package visibletest

import (
	"reflect"
	"strings"
	"testing"
	"unicode"
	"unicode/utf8"
)

// Mark is part of Hostile, so that a test can tell that the text was shown at all.
const Mark = "gotcha"

// Hostile clears the screen, sets the terminal's title, moves the cursor, begins a line of its own and a column, and
// changes the direction of writing. It is not valid UTF-8, and has a NUL, which ends strings in C.
const Hostile = Mark + "\x1b[2J\x1b]0;title\a\r\nNODE   ok\ttab\x00\u009b31m\u202egnp\u2066\u200b\x7f\xff\xfe"

// Fill puts Hostile into every string that v points to, and an element into every empty slice, map and pointer. Structs
// with unexported fields, such as times and addresses, stay as they are.
func Fill(v any) { fill(reflect.ValueOf(v).Elem(), 0) }

// maxDepth bounds the recursion for types that contain themselves.
const maxDepth = 8

func fill(v reflect.Value, depth int) {
	if depth > maxDepth || !v.CanSet() {
		return
	}
	switch v.Kind() {
	case reflect.String:
		v.SetString(Hostile)
	case reflect.Struct:
		for i := range v.NumField() {
			fill(v.Field(i), depth+1)
		}
	case reflect.Pointer:
		v.Set(reflect.New(v.Type().Elem()))
		fill(v.Elem(), depth+1)
	case reflect.Slice:
		v.Set(reflect.MakeSlice(v.Type(), 1, 1))
		fill(v.Index(0), depth+1)
	case reflect.Map:
		key, value := reflect.New(v.Type().Key()).Elem(), reflect.New(v.Type().Elem()).Elem()
		fill(key, depth+1)
		fill(value, depth+1)
		v.Set(reflect.MakeMap(v.Type()))
		v.SetMapIndex(key, value)
	}
}

// Check fails the test when shown has anything that a terminal interprets, a line that begins like the one in Hostile,
// or nothing of Hostile at all. Line breaks are allowed.
func Check(t testing.TB, what, shown string) {
	t.Helper()
	if !strings.Contains(shown, Mark) {
		t.Errorf("%s does not show the text at all: %q", what, shown)
	}
	for line := range strings.Lines(shown) {
		for _, r := range strings.TrimSuffix(line, "\n") {
			if !unicode.IsPrint(r) {
				t.Errorf("%s has %U in the line %q", what, r, line)
				break
			}
		}
		if !utf8.ValidString(line) {
			t.Errorf("%s has a line that is not UTF-8: %q", what, line)
		}
		if strings.HasPrefix(line, "NODE   ok") {
			t.Errorf("%s has a line that others wrote: %q", what, line)
		}
	}
}

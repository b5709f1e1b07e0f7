// Package visible makes text from others fit to be shown. Names, annotations, error messages and the like are chosen by
// whoever wrote the object, sent the packet or runs the server. Printed unchanged, they could move a terminal's cursor,
// hide lines, or add lines that look like Tapestry's own. Package visible writes characters that are not printable as
// in a Go string, so that they can be seen. Making text visible twice gives the same as once.
package visible

import (
	"strconv"
	"strings"
	"unicode/utf8"
)

// Text returns s on one line. Printable characters, by the rule of strconv.IsPrint, stay; line breaks, tabs, escape
// sequences, invisible and direction-changing characters and broken UTF-8 are escaped.
func Text(s string) string {
	at := 0
	for at < len(s) {
		r, n := utf8.DecodeRuneInString(s[at:])
		if !shown(r, n) {
			break
		}
		at += n
	}
	if at == len(s) {
		return s
	}
	var b strings.Builder
	b.WriteString(s[:at])
	for s = s[at:]; s != ""; {
		r, n := utf8.DecodeRuneInString(s)
		if shown(r, n) {
			b.WriteString(s[:n])
		} else {
			quoted := strconv.Quote(s[:n])
			b.WriteString(quoted[1 : len(quoted)-1])
		}
		s = s[n:]
	}
	return b.String()
}

// shown reports whether a rune, decoded from n bytes, stays as it is. One byte of broken UTF-8 decodes as RuneError.
func shown(r rune, n int) bool { return strconv.IsPrint(r) && (r != utf8.RuneError || n > 1) }

// Lines returns a message of several lines, such as joined errors. All lines except the first are indented, so that
// none begins where Tapestry's own lines do.
func Lines(s string) string {
	lines := strings.Split(s, "\n")
	for i, line := range lines {
		if lines[i] = Text(line); i > 0 && line != "" {
			lines[i] = "  " + lines[i]
		}
	}
	return strings.Join(lines, "\n")
}

// JSON returns the same JSON, with characters that encoding/json leaves unescaped and that a terminal interprets or
// hides written as \uXXXX: DEL, the control characters beyond ASCII, and invisible ones. White space between values
// stays.
func JSON(b []byte) []byte {
	out := make([]byte, 0, len(b))
	for len(b) > 0 {
		r, n := utf8.DecodeRune(b)
		switch {
		case r < 0x20 || strconv.IsPrint(r):
			out = append(out, b[:n]...)
		case r > 0xffff: // as a surrogate pair (RFC 8259 section 7)
			r -= 0x10000
			out = appendUnit(appendUnit(out, 0xd800+r>>10), 0xdc00+r&0x3ff)
		default:
			out = appendUnit(out, r)
		}
		b = b[n:]
	}
	return out
}

func appendUnit(b []byte, unit rune) []byte {
	const digits = "0123456789abcdef"
	return append(b, '\\', 'u', digits[unit>>12&15], digits[unit>>8&15], digits[unit>>4&15], digits[unit&15])
}

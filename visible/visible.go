// Package visible makes text of others fit to be shown. Names, annotations, error messages and the like are chosen by
// whoever wrote the object, sent the packet or runs the server; printed as they are, they could move a terminal's
// cursor, hide lines, or add lines that look like ours. What is not printable is written as in a Go string instead, so
// that it can be seen. Text that was made visible stays as it is when that is done again.
package visible

import (
	"strconv"
	"strings"
	"unicode/utf8"
)

// Text gives s on one line. Printable characters, by the rule of strconv.IsPrint, stay; line breaks, tabs, escape
// sequences, invisible and direction-changing characters and broken UTF-8 do not.
func Text(s string) string {
	at := 0
	for at < len(s) {
		r, n := utf8.DecodeRuneInString(s[at:])
		if r == utf8.RuneError && n == 1 || !strconv.IsPrint(r) {
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
		if r != utf8.RuneError && strconv.IsPrint(r) || r == utf8.RuneError && n > 1 {
			b.WriteString(s[:n])
		} else {
			quoted := strconv.Quote(s[:n])
			b.WriteString(quoted[1 : len(quoted)-1])
		}
		s = s[n:]
	}
	return b.String()
}

// Lines gives a message of several lines, as errors that were joined are, so that no line but the first begins where
// ours do.
func Lines(s string) string {
	lines := strings.Split(s, "\n")
	for i, line := range lines {
		if lines[i] = Text(line); i > 0 && line != "" {
			lines[i] = "  " + lines[i]
		}
	}
	return strings.Join(lines, "\n")
}

// JSON gives the same JSON with what encoding/json leaves as it is, and a terminal does not, written as \uXXXX: DEL, the
// control characters beyond ASCII, and invisible ones. White space between values stays.
func JSON(b []byte) []byte {
	out := make([]byte, 0, len(b))
	for len(b) > 0 {
		r, n := utf8.DecodeRune(b)
		switch {
		case r < 0x20 || strconv.IsPrint(r):
			out = append(out, b[:n]...)
		case r > 0xffff: // as two halves (RFC 8259 section 7)
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

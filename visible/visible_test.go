package visible

import (
	"encoding/json"
	"strings"
	"testing"
	"unicode"
)

func TestText(t *testing.T) {
	for in, want := range map[string]string{
		"":                      "",
		"plain text, 100 %":     "plain text, 100 %",
		"grüße, 日本, 😀, \ufffd":  "grüße, 日本, 😀, \ufffd",
		"a\nb\r\tc":             `a\nb\r\tc`,
		"\x1b[2J\x1b]0;x\a":     `\x1b[2J\x1b]0;x\a`,
		"\u009b31m\x7f":         `\u009b31m\x7f`,
		"a\u202eb\u200bc\u2066": `a\u202eb\u200bc\u2066`,
		"\xff\xfe ok \xc3":      `\xff\xfe ok \xc3`,
		"nul\x00":               `nul\x00`,
		`"quoted" \n`:           `"quoted" \n`,
	} {
		if got := Text(in); got != want {
			t.Errorf("%q: %s, want %s", in, got, want)
		}
	}
}

func TestLines(t *testing.T) {
	if got, want := Lines("one\ntapestry: two\x1b[2J\n\nthree\n"), "one\n  tapestry: two\\x1b[2J\n\n  three\n"; got != want {
		t.Errorf("%q, want %q", got, want)
	}
}

// FuzzVisible: whatever the input, the output has nothing that a terminal interprets, a second pass changes nothing,
// and JSON keeps its meaning.
func FuzzVisible(f *testing.F) {
	for _, s := range []string{"", "a\x1b[2Jb\n", "\u009b\u202e\U000e0001\x7f", "\xff", `\x1b`, "a\u2028"} {
		f.Add(s)
	}
	shown := func(t *testing.T, s, allowed string) {
		for _, r := range s {
			if !unicode.IsPrint(r) && !strings.ContainsRune(allowed, r) {
				t.Errorf("%q has %U", s, r)
			}
		}
	}
	f.Fuzz(func(t *testing.T, s string) {
		text := Text(s)
		shown(t, text, "")
		if again := Text(text); again != text {
			t.Errorf("%q, again %q", text, again)
		}
		shown(t, Lines(s), "\n")
		b, err := json.MarshalIndent(map[string]string{"x": s}, "", "\t")
		if err != nil {
			t.Fatal(err)
		}
		out := JSON(b)
		shown(t, string(out), "\n\t")
		var before, after map[string]string
		if json.Unmarshal(b, &before) != nil || json.Unmarshal(out, &after) != nil || before["x"] != after["x"] {
			t.Errorf("%q became %q", b, out)
		}
	})
}

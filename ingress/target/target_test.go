package target

import (
	"net/url"
	"path"
	"strings"
	"testing"
)

func TestParse(t *testing.T) {
	for _, tt := range []struct {
		method, uri, raw, path string // raw "": refused
	}{
		// Bytes stay as they were sent.
		{"GET", "/", "/", "/"},
		{"GET", "/a/b?q=1", "/a/b?q=1", "/a/b"},
		{"GET", "/a%2Fb|c", "/a%2Fb|c", "/a%2Fb|c"},
		{"GET", "/a%2fb", "/a%2fb", "/a%2Fb"},
		{"GET", `/"^{}<>|` + "`", `/"^{}<>|` + "`", `/"^{}<>|` + "`"},
		{"GET", "/caf\xc3\xa9", "/caf\xc3\xa9", "/café"},
		{"GET", "/caf%C3%A9", "/caf%C3%A9", "/café"},
		{"GET", "/%41%62", "/%41%62", "/Ab"},
		{"GET", "/a b", "", ""},
		{"GET", "/a%20b", "/a%20b", "/a b"},
		{"GET", "/a?", "/a?", "/a"},
		{"GET", "/a??b", "/a??b", "/a"},
		{"GET", "/a?%zz&;/../x", "/a?%zz&;/../x", "/a"},
		{"GET", "/\xff\xfe", "/\xff\xfe", "/\xff\xfe"},
		// Slashes, parameters, double encoding.
		{"GET", "//b", "//b", "//b"},
		{"GET", "//a|b", "//a|b", "//a|b"},
		{"GET", "/a//b/", "/a//b/", "/a//b/"},
		{"GET", "/a;x=1/b;y", "/a;x=1/b;y", "/a;x=1/b;y"},
		{"GET", "/a%252e%252e/b", "/a%252e%252e/b", "/a%252e%252e/b"},
		{"GET", "/%252e%252e/b", "/%252e%252e/b", "/%252e%252e/b"},
		{"GET", `/a\b`, `/a\b`, `/a\b`},
		{"GET", "/a%5Cb", "/a%5Cb", `/a\b`},
		// Dot segments are removed.
		{"GET", "/raw/../admin", "/admin", "/admin"},
		{"GET", "/raw/%2e%2e/admin", "/admin", "/admin"},
		{"GET", "/raw/%2E./admin?x=/../y", "/admin?x=/../y", "/admin"},
		{"GET", "/a/./b/.", "/a/b/", "/a/b/"},
		{"GET", "/a/b/..", "/a/", "/a/"},
		{"GET", "/a/..", "/", "/"},
		{"GET", "/.", "/", "/"},
		{"GET", "/a//../b|%2F", "/a/b|%2F", "/a/b|%2F"},
		{"GET", "/.well-known/x", "/.well-known/x", "/.well-known/x"},
		{"GET", "/a/...", "/a/...", "/a/..."},
		{"GET", "/a/..b/.c", "/a/..b/.c", "/a/..b/.c"},
		// Dot segments that lead out of the root, or are hidden, are refused.
		{"GET", "/..", "", ""},
		{"GET", "/../a", "", ""},
		{"GET", "/a/../../b", "", ""},
		{"GET", "/a/..%2Fb", "", ""},
		{"GET", "/a/%2e%2e%2fb", "", ""},
		{"GET", "/a/x%2F..%2Fb", "", ""},
		{"GET", `/a/..\b`, "", ""},
		{"GET", `/a\..\b`, "", ""},
		{"GET", "/a/..%5Cb", "", ""},
		{"GET", "/a/..;/b", "", ""},
		{"GET", "/a/..;x=1/b", "", ""},
		{"GET", "/a/.;x/b", "", ""},
		{"GET", "/a/..%3Bx/b", "", ""},
		{"GET", "/a;..", "/a;..", "/a;.."},
		// Targets that are not paths.
		{"GET", "/a%00", "", ""},
		{"GET", "/a%", "", ""},
		{"GET", "/a%4", "", ""},
		{"GET", "/a%zz", "", ""},
		{"GET", "/a#b", "", ""},
		{"GET", "/a?x#b", "", ""},
		{"GET", "/a\x01", "", ""},
		{"GET", "/a?b c HTTP/1.1", "", ""},
		{"GET", "", "", ""},
		{"GET", "a/b", "", ""},
		// Other forms.
		{"GET", "http://shop.example/a%2Fb|c?q", "/a%2Fb|c?q", "/a%2Fb|c"},
		{"GET", "HTTPS://shop.example:8443", "/", "/"},
		{"GET", "http://shop.example?q", "/?q", "/"},
		{"GET", "http://shop.example/a/../b", "/b", "/b"},
		{"GET", "http://user@shop.example/", "", ""},
		{"GET", "ftp://shop.example/", "", ""},
		{"OPTIONS", "*", "*", "/"},
		{"OPTIONS", "http://shop.example", "*", "/"},
		{"OPTIONS", "http://shop.example/", "/", "/"},
		{"GET", "*", "", ""},
		{"OPTIONS", "*?q", "", ""},
	} {
		got, err := Parse(tt.method, tt.uri)
		switch {
		case tt.raw == "" && err == nil:
			t.Errorf("%s %q: got %+v, want it refused", tt.method, tt.uri, got)
		case tt.raw != "" && (err != nil || got != Target{Raw: tt.raw, Path: tt.path}):
			t.Errorf("%s %q: got %+v, %v, want %q and path %q", tt.method, tt.uri, got, err, tt.raw, tt.path)
		}
	}
}

func TestRule(t *testing.T) {
	for _, tt := range []struct{ rule, want string }{
		{"/a/b", "/a/b"}, {"/caf%C3%A9", "/café"}, {"/a%20b", "/a b"}, {"/a%2fb", "/a%2Fb"}, {"/100%", "/100%25"}, {"/100%25", "/100%25"},
		{"/%zz", "/%25zz"}, {"", ""}, {"/%2e%2E", "/.."},
	} {
		if got := Rule(tt.rule); got != tt.want {
			t.Errorf("%q: got %q, want %q", tt.rule, got, tt.want)
		}
	}
}

// slowPath is the slow twin of Parse for the origin form: it returns the decoded path, and false when the target must
// be refused.
func slowPath(uri string) (string, bool) {
	raw, _, _ := strings.Cut(uri, "?")
	if strings.ContainsFunc(uri, func(c rune) bool { return c <= ' ' || c == 0x7f || c == '#' }) || !strings.HasPrefix(raw, "/") {
		return "", false
	}
	var kept []string
	parts := strings.Split(raw, "/")[1:]
	for i, p := range parts {
		text, err := url.PathUnescape(p)
		if err != nil || strings.Contains(text, "\x00") {
			return "", false
		}
		if text == ".." && len(kept) == 0 {
			return "", false
		}
		// A backend that splits at more characters, or cuts off parameters, must not find more dot segments.
		for _, sub := range strings.Split(strings.ReplaceAll(text, "\\", "/"), "/") {
			if sub = strings.Split(sub, ";")[0]; (sub == "." || sub == "..") && text != "." && text != ".." {
				return "", false
			}
		}
		if text == ".." {
			kept = kept[:len(kept)-1]
		}
		if text == "." || text == ".." {
			if i == len(parts)-1 {
				kept = append(kept, "")
			}
			continue
		}
		kept = append(kept, strings.ReplaceAll(strings.ReplaceAll(text, "%", "%25"), "/", "%2F"))
	}
	return "/" + strings.Join(kept, "/"), true
}

func FuzzParse(f *testing.F) {
	for _, s := range []string{"/a/../b", "/%2e%2e/x", "//x/./y?z", "/a%2Fb|c", `/..\x`, "/..;/x", "/a/%252e", "/", "/a/b/..", "/%41", "/é"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, uri string) {
		got, err := Parse("GET", uri)
		if want, ok := slowPath(uri); strings.HasPrefix(uri, "/") && (ok != (err == nil) || ok && got.Path != want) {
			t.Fatalf("%q: got %q, %v, want %q, %v", uri, got.Path, err, want, ok)
		}
		if err != nil {
			return
		}
		if again, err := Parse("GET", got.Raw); err != nil || again != got {
			t.Errorf("%q: %+v became %+v, %v", uri, got, again, err)
		}
		raw, query, _ := strings.Cut(got.Raw, "?")
		if _, sent, _ := strings.Cut(uri, "?"); query != sent {
			t.Errorf("%q: the query became %q", uri, query)
		}
		// A backend that decodes and cleans the path finds the one that the route was found by, whether it merges
		// slashes or not.
		decoded, err := url.PathUnescape(raw)
		if err != nil {
			t.Fatal(err)
		}
		if strings.Contains(decoded, "\\") || strings.Contains(decoded, "//") {
			return
		}
		if clean := path.Clean(decoded); clean != strings.TrimSuffix(decoded, "/") && decoded != "/" {
			t.Errorf("%q: a backend that decodes and cleans makes %q of %q", uri, clean, decoded)
		}
		if rule := Rule(raw); rule != got.Path {
			t.Errorf("%q: the rule %q is found by %q", uri, raw, rule)
		}
	})
}

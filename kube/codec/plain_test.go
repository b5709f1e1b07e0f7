package codec

import (
	discoveryv1 "k8s.io/api/discovery/v1"
	"strings"
	"tapestry.dev/tapestry/roll"
	"testing"

	"github.com/google/go-cmp/cmp"

	"tapestry.dev/tapestry/kube"
)

const podHead = "apiVersion: v1\nkind: Pod\nmetadata:\n  name: p\n"

// Plain must read what programs print, or it would be useless.
func TestPlainTakesWhatProgramsPrint(t *testing.T) {
	for name, text := range map[string]string{
		"a slice":             string(sliceDocument()),
		"two documents":       podHead + "---\n# another\napiVersion: v1\nkind: Pod\nmetadata:\n  name: q\n",
		"lists in lists":      podHead + "spec:\n  containers:\n  - name: a\n    ports:\n    - containerPort: 80\n      name: http\n    - containerPort: 81\n  - name: b\n",
		"deeper lists":        podHead + "spec:\n    containers:\n      - name: a\n        command:\n          - /bin/sleep\n          - infinity\n",
		"kinds of scalars":    podHead + "  labels:\n    a: \"1\"\n    b: 'true'\n    c: x:y\n    d: 10.0.0.1\n    e: 0a-1\n    f: a b # not a comment: no\n",
		"nothing":             podHead + "spec: {}\nstatus:\n",
		"no end of last line": strings.TrimSuffix(podHead, "\n"),
	} {
		p := parser{name: "x", seen: map[kube.Ref]string{}}
		took := p.plainStream([]byte(text))
		if want := !strings.Contains(text, " #") || strings.Contains(text, "\n#"); took != want {
			t.Errorf("%s: taken %v, want %v", name, took, want)
		}
		samePlain(t, text)
	}
}

// Where plain might be wrong, the complete parser decides.
func TestPlainGivesUp(t *testing.T) {
	for _, rest := range []string{
		"  labels:\n    a: yes and\n      no\n",          // a scalar of two lines
		"  labels: {a: b}\n",                             // flow
		"  labels:\n    a: &x b\n    c: *x\n",            // anchors
		"  labels:\n    a: |\n      text\n",              // a block scalar
		"  labels:\n    a: 1_000\n",                      // a number, in YAML 1.1
		"  labels:\n    a: 0x1F\n",                       // hexadecimal
		"  labels:\n    a: 1e3\n",                        // a float
		"  labels:\n    a: 1.5\n",                        // a float
		"  labels:\n    a: .inf\n",                       // not a number
		"  labels:\n    a: -1\n",                         // could be a list item
		"  labels:\n    a: ~\n",                          // null
		"  labels:\n    a: True\n",                       // a boolean
		"  labels:\n    a: \"\\n\"\n",                    // an escape
		"  labels:\n    a: 'it''s'\n",                    // a quote
		"  labels:\n    a: x # comment\n",                // a comment at the end
		"  labels:\n    a: x\n    a: y\n",                // a key twice
		"  labels:\n    ? a\n    : b\n",                  // a complex key
		"  labels:\n    <<: {a: b}\n",                    // a merge
		"  labels:\n\ta: b\n",                            // a tab
		"  labels:\n    a: \u00e4\n",                     // not ASCII
		"  labels:\n    a: b\r\n",                        // line ends of Windows
		"  labels:\n      a: b\n    c: d\n",              // indentation that fits nowhere
		"spec:\n  containers:\n  -\n    name: a\n",       // a dash on its own line
		"spec:\n  containers:\n  - - a\n",                // a list in a list
		"unknown: 1\n",                                   // no such field
		"spec:\n  containers:\n  - name: a\n   - b: c\n", // a dash at the wrong indentation
		"...\n", "--- x\n", "%YAML 1.2\n", "- a\n",
	} {
		text := podHead + rest
		p := parser{name: "x", seen: map[kube.Ref]string{}}
		if p.plainStream([]byte(text)) {
			t.Errorf("the short way took\n%s", text)
		}
		samePlain(t, text)
	}
}

// samePlain compares plain with the complete parser, for a text that plain accepts.
func samePlain(t *testing.T, text string) {
	t.Helper()
	short, long := parser{name: "x", seen: map[kube.Ref]string{}}, parser{name: "x", seen: map[kube.Ref]string{}}
	if !short.plainStream([]byte(text)) {
		return
	}
	long.yamlStream([]byte(text))
	if len(long.errs) > 0 {
		t.Fatalf("the short way takes what is wrong: %v\n%q", long.errs, text)
	}
	if diff := cmp.Diff(long.objects.Objects(), short.objects.Objects(), cmp.AllowUnexported(roll.List[*discoveryv1.EndpointSlice]{}, roll.List[*kube.OtherPod]{})); diff != "" {
		t.Fatalf("the short way differs (-long +short):\n%s\n%q", diff, text)
	}
}

func FuzzPlain(f *testing.F) {
	f.Add(string(sliceDocument()))
	f.Add(podHead + "  labels:\n    a: 1\n    b: \"2\"\n    c: 3.4\n    d: 1-2\nspec:\n  containers:\n  - name: x\n    args:\n    - a:b\n    - 0\n---\n")
	f.Add("---\n" + podHead + "spec: {}\nstatus:\n  podIPs:\n  - ip: 10.0.0.1\n# end\n---\n---\n" + podHead)
	f.Add("apiVersion: v1\nkind: ConfigMap\nmetadata:\n  name: c\ndata:\n  a:\n  b: 12e-4\n  c: 2026-01-01\n  d: 1:2\n  e: 08\n")
	f.Fuzz(func(t *testing.T, text string) { samePlain(t, text) })
}

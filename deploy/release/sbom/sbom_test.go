package sbom

import (
	"bytes"
	"crypto/sha256"
	"debug/buildinfo"
	"encoding/json"
	"os"
	"runtime/debug"
	"slices"
	"strings"
	"testing"
	"time"
)

func release() Release {
	return Release{
		Name: "tapestry", Version: "v1.2.0", Created: time.Date(2026, 3, 4, 5, 6, 7, 0, time.UTC),
		Programs: []Program{
			{File: "linux-arm64/two", SHA256: sha256.Sum256([]byte("two")), License: "Apache-2.0", Info: &debug.BuildInfo{
				GoVersion: "go1.26.8", Path: "example.com/two", Deps: []*debug.Module{{Path: "example.com/a/v2", Version: "v2.0.1"}},
			}},
			{File: "linux-amd64/one", SHA256: sha256.Sum256([]byte("one")), Info: &debug.BuildInfo{
				GoVersion: "go1.26.8", Path: "example.com/one", Deps: []*debug.Module{
					{Path: "example.com/a/v2", Version: "v2.0.1"},
					{Path: "example.com/old", Version: "v0.1.0", Replace: &debug.Module{Path: "example.com/new", Version: "v0.2.0"}},
				},
			}},
		},
	}
}

func written(t *testing.T, r Release) (spdx, []byte) {
	t.Helper()
	var b bytes.Buffer
	if err := Write(&b, r); err != nil {
		t.Fatal(err)
	}
	var doc spdx
	if err := json.Unmarshal(b.Bytes(), &doc); err != nil {
		t.Fatal(err)
	}
	return doc, b.Bytes()
}

func TestWrite(t *testing.T) {
	doc, text := written(t, release())
	var names []string
	ids := map[string]string{document: "document"}
	for _, p := range doc.Packages {
		names = append(names, p.Name+" "+p.Version)
		if ids[p.ID] != "" {
			t.Errorf("%s and %s are both %s", p.Name, ids[p.ID], p.ID)
		}
		ids[p.ID] = p.Name
		if p.Purpose == "LIBRARY" && (len(p.External) != 1 || p.External[0].Locator != "pkg:golang/"+p.Name+"@"+p.Version) {
			t.Errorf("%s is found at %v", p.Name, p.External)
		}
	}
	if want := []string{"example.com/one v1.2.0", "example.com/two v1.2.0", "example.com/a/v2 v2.0.1", "example.com/new v0.2.0", "stdlib 1.26.8"}; !slices.Equal(names, want) {
		t.Errorf("the packages are %q, want %q", names, want)
	}
	var edges []string
	for _, r := range doc.Relationships {
		if ids[r.From] == "" || ids[r.To] == "" {
			t.Errorf("%+v: there is no such package", r)
		}
		edges = append(edges, ids[r.From]+" "+r.Type+" "+ids[r.To])
	}
	slices.Sort(edges)
	want := []string{
		"document DESCRIBES example.com/one", "document DESCRIBES example.com/two",
		"example.com/one DEPENDS_ON example.com/a/v2", "example.com/one DEPENDS_ON example.com/new", "example.com/one DEPENDS_ON stdlib",
		"example.com/two DEPENDS_ON example.com/a/v2", "example.com/two DEPENDS_ON stdlib",
	}
	if !slices.Equal(edges, want) {
		t.Errorf("the relationships are %q, want %q", edges, want)
	}
	two := doc.Packages[1]
	if two.Declared != "Apache-2.0" || two.FileName != "linux-arm64/two" || len(two.Checksums) != 1 || len(two.Checksums[0].Value) != 64 {
		t.Errorf("got %+v", two)
	}
	r := release()
	slices.Reverse(r.Programs)
	if _, again := written(t, r); !bytes.Equal(text, again) {
		t.Error("the same release is written otherwise")
	}
	r.Programs[0].SHA256[0]++
	if other, _ := written(t, r); other.Namespace == doc.Namespace || !strings.HasPrefix(other.Namespace, "https://") {
		t.Errorf("another document has the namespace %s, too", other.Namespace)
	}
}

// TestOwn: a real program contains the list of its modules.
func TestOwn(t *testing.T) {
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	info, err := buildinfo.ReadFile(exe)
	if err != nil {
		t.Fatal(err)
	}
	doc, _ := written(t, Release{Name: "x", Version: "1", Programs: []Program{{File: "x", Info: info}}})
	if last := doc.Packages[len(doc.Packages)-1]; last.Name != "stdlib" || !strings.HasPrefix(last.Version, "1.") {
		t.Errorf("got %+v", last)
	}
	if err := Write(&bytes.Buffer{}, Release{Programs: []Program{{File: "mute"}}}); err == nil || !strings.Contains(err.Error(), "mute says nothing") {
		t.Errorf("of a program without build information: %v", err)
	}
}

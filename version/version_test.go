package version

import (
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime/debug"
	"strings"
	"testing"
)

func TestOf(t *testing.T) {
	const id = "0123456789abcdef0123456789abcdef01234567"
	for _, tt := range []struct {
		main     string
		settings []debug.BuildSetting
		want     string
	}{
		{"", nil, Unknown},
		{"(devel)", nil, Unknown},
		{"v1.2.0", nil, "v1.2.0"},
		{"v1.2.0+dirty", []debug.BuildSetting{{Key: "vcs.revision", Value: id}}, "v1.2.0+dirty"},
		{"(devel)", []debug.BuildSetting{{Key: "vcs.modified", Value: "true"}}, Unknown},
		{"(devel)", []debug.BuildSetting{{Key: "vcs.revision", Value: id}, {Key: "vcs.modified", Value: "false"}}, "0123456789ab"},
		{"", []debug.BuildSetting{{Key: "vcs.revision", Value: id}, {Key: "vcs.modified", Value: "true"}}, "0123456789ab-dirty"},
		{"", []debug.BuildSetting{{Key: "vcs.revision", Value: "short"}}, "short"},
	} {
		info := &debug.BuildInfo{Main: debug.Module{Version: tt.main}, Settings: tt.settings}
		if got := of(info); got != tt.want {
			t.Errorf("%q %v: got %q, want %q", tt.main, tt.settings, got, tt.want)
		}
	}
}

// The linker's stamp precedes everything else. A test binary has no version of its own.
func TestString(t *testing.T) {
	if got := String(); got == "" {
		t.Error("a build has no name")
	}
	stamped = "v9"
	defer func() { stamped = "" }()
	if got := String(); got != "v9" {
		t.Errorf("got %q, want what was stamped", got)
	}
}

// TestStamp builds a program in the way that each of these files builds programs, and reads its version.
func TestStamp(t *testing.T) {
	flag := regexp.MustCompile(`-X (\S+)=["$]`)
	for _, file := range []string{"Makefile", "deploy/release/build.go"} {
		text, err := os.ReadFile(filepath.Join("..", file))
		if err != nil {
			t.Fatal(err)
		}
		m := flag.FindSubmatch(text)
		if m == nil {
			t.Errorf("%s stamps no version", file)
			continue
		}
		exe := filepath.Join(t.TempDir(), "program")
		if out, err := exec.Command("go", "build", "-buildvcs=false", "-ldflags", "-s -w -X "+string(m[1])+"=v9.8.7", "-o", exe, "../cmd/tapestry-cni").CombinedOutput(); err != nil {
			t.Fatalf("%v: %s", err, out)
		}
		if out, err := exec.Command(exe, "--version").Output(); err != nil || strings.TrimSpace(string(out)) != "tapestry-cni version v9.8.7" {
			t.Errorf("stamped in the way of %s: %q, %v", file, out, err)
		}
	}
}

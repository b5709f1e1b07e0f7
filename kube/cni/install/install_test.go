package install

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

type world struct {
	t *testing.T
	Options
}

func newWorld(t *testing.T) *world {
	dir := t.TempDir()
	w := &world{t, Options{BinDir: filepath.Join(dir, "opt", "bin"), ConfDir: filepath.Join(dir, "etc", "net.d"), Source: filepath.Join(dir, "image"), Socket: "/run/t/agent.sock"}}
	if err := os.Mkdir(w.Source, 0o755); err != nil {
		t.Fatal(err)
	}
	w.bring("v1")
	return w
}

func (w *world) put(path, content string) {
	w.t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		w.t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(content), 0o755); err != nil {
		w.t.Fatal(err)
	}
}

// bring puts another version of the image into Source.
func (w *world) bring(version string) {
	w.put(filepath.Join(w.Source, plugin), "plugin "+version)
	w.put(filepath.Join(w.Source, loopback), "loopback "+version)
}

func (w *world) install() []string {
	w.t.Helper()
	notes, err := Install(w.Options)
	if err != nil {
		w.t.Fatal(err)
	}
	return notes
}

func (w *world) uninstall() {
	w.t.Helper()
	if err := Uninstall(Options{BinDir: w.BinDir, ConfDir: w.ConfDir}); err != nil {
		w.t.Fatal(err)
	}
}

// has asserts the content of a plugin; "" means that there is none.
func (w *world) has(name, want string) {
	w.t.Helper()
	path := filepath.Join(w.BinDir, name)
	b, err := os.ReadFile(path)
	if want == "" {
		if !os.IsNotExist(err) {
			w.t.Errorf("%s is there: %q, %v", name, b, err)
		}
		return
	}
	if string(b) != want || err != nil {
		w.t.Errorf("%s is %q, %v; want %q", name, b, err, want)
	}
	if st, err := os.Stat(path); err != nil || st.Mode().Perm() != 0o755 {
		w.t.Errorf("%s: %v, %v", name, st.Mode(), err)
	}
}

func (w *world) empty() {
	w.t.Helper()
	for _, dir := range []string{w.BinDir, w.ConfDir} {
		entries, err := os.ReadDir(dir)
		if err != nil || len(entries) != 0 {
			w.t.Errorf("left in %s: %v, %v", dir, entries, err)
		}
	}
}

func TestInstall(t *testing.T) {
	w := newWorld(t)
	for range 2 {
		if notes := w.install(); notes != nil {
			t.Errorf("notes: %v", notes)
		}
		w.has(plugin, "plugin v1")
		w.has(loopback, "loopback v1")
	}
	var c struct {
		Version string   `json:"cniVersion"`
		All     []string `json:"cniVersions"`
		Name    string
		Plugins []struct {
			Type, Socket string
			Capabilities map[string]bool
		}
	}
	b, err := os.ReadFile(filepath.Join(w.ConfDir, ConfigFile))
	if err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal(b, &c); err != nil {
		t.Fatal(err)
	}
	if c.Version != "1.0.0" || c.All[len(c.All)-1] != "1.1.0" || c.Name == "" || len(c.Plugins) != 1 ||
		c.Plugins[0].Type != "tapestry-cni" || c.Plugins[0].Socket != "/run/t/agent.sock" || !c.Plugins[0].Capabilities["portMappings"] {
		t.Errorf("%s", b)
	}
	w.bring("v2")
	w.put(filepath.Join(w.BinDir, temporary+"1"), "of one that was killed")
	w.install()
	w.has(plugin, "plugin v2")
	w.has(loopback, "loopback v2")
	for range 2 {
		w.uninstall()
		w.empty()
	}
}

// A running plugin is replaced, not overwritten in place.
func TestReplaces(t *testing.T) {
	w := newWorld(t)
	w.install()
	f, err := os.Open(filepath.Join(w.BinDir, plugin))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	w.bring("v2")
	w.install()
	old := make([]byte, 9)
	if _, err := f.ReadAt(old, 0); err != nil || string(old) != "plugin v1" {
		t.Errorf("%q, %v", old, err)
	}
}

// A loopback that another network installed stays as it is.
func TestForeignLoopback(t *testing.T) {
	w := newWorld(t)
	w.put(filepath.Join(w.BinDir, loopback), "of the distribution")
	w.install()
	w.has(loopback, "of the distribution")
	w.uninstall()
	w.has(loopback, "of the distribution")
	w.has(plugin, "")
	// Now it is Tapestry's, and somebody has replaced it since.
	if err := os.Remove(filepath.Join(w.BinDir, loopback)); err != nil {
		t.Fatal(err)
	}
	w.install()
	w.has(loopback, "loopback v1")
	w.put(filepath.Join(w.BinDir, loopback), "of the distribution")
	w.bring("v2")
	w.install()
	w.has(loopback, "of the distribution")
	w.uninstall()
	w.has(loopback, "of the distribution")
}

func TestNotes(t *testing.T) {
	w := newWorld(t)
	if err := os.Remove(filepath.Join(w.Source, loopback)); err != nil {
		t.Fatal(err)
	}
	w.put(filepath.Join(w.ConfDir, "05-other.conf"), "{}")
	w.put(filepath.Join(w.ConfDir, "05-other.bak"), "{}")
	w.put(filepath.Join(w.ConfDir, "99-other.conf"), "{}")
	notes := strings.Join(w.install(), "\n")
	for _, want := range []string{"there is no loopback", "05-other.conf comes before 10-tapestry.conflist"} {
		if !strings.Contains(notes, want) || strings.Count(notes, "\n") != 1 {
			t.Errorf("notes %q, want %q", notes, want)
		}
	}
}

func TestNoSource(t *testing.T) {
	w := newWorld(t)
	if err := os.Remove(filepath.Join(w.Source, plugin)); err != nil {
		t.Fatal(err)
	}
	if _, err := Install(w.Options); err == nil || !strings.Contains(err.Error(), "--source must be") {
		t.Errorf("got %v", err)
	}
	w.empty() // no configuration for a plugin that does not exist
}

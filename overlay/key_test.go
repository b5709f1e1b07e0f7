package overlay

import (
	"bytes"
	"encoding/json"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"golang.org/x/crypto/curve25519"
)

func TestLoadOrCreateKey(t *testing.T) {
	path := filepath.Join(t.TempDir(), "key")
	k, err := LoadOrCreateKey(path)
	if err != nil {
		t.Fatal(err)
	}
	again, err := LoadOrCreateKey(path)
	if err != nil || again.Reveal() != k.Reveal() || k.Reveal() == [32]byte{} {
		t.Errorf("second load: %v, same key: %v", err, again.Reveal() == k.Reveal())
	}
	st, err := os.Stat(path)
	if err != nil || st.Mode().Perm() != 0o600 {
		t.Errorf("mode %v, %v; want 0600", st.Mode(), err)
	}
	if files, _ := os.ReadDir(filepath.Dir(path)); len(files) != 1 {
		t.Errorf("%d files are left, want the key alone", len(files))
	}
}

func TestLoadOrCreateKeyTogether(t *testing.T) {
	path := filepath.Join(t.TempDir(), "key")
	keys := make([]PrivateKey, 8)
	var wg sync.WaitGroup
	for i := range keys {
		wg.Go(func() {
			var err error
			if keys[i], err = LoadOrCreateKey(path); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	for _, k := range keys {
		if k.Reveal() != keys[0].Reveal() {
			t.Fatal("two agents started at once have different keys")
		}
	}
}

func TestLoadKeyRefuses(t *testing.T) {
	good := "yAnz5TF+lXXJte14tji3zlMNq+hd2rYUIgJBgB3fBmk=\n"
	for _, c := range []struct {
		name, text, want string
		mode             os.FileMode
	}{
		{"group may read", good, "chmod 600", 0o640},
		{"world may read", good, "chmod 600", 0o604},
		{"short", "yAnz5TF+lXXJ\n", "44 base64", 0o600},
		{"empty", "", "44 base64", 0o600},
		{"not base64", strings.Repeat("!", 44), "44 base64", 0o600},
	} {
		t.Run(c.name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "key")
			if err := os.WriteFile(path, []byte(c.text), 0o600); err != nil {
				t.Fatal(err)
			}
			if err := os.Chmod(path, c.mode); err != nil {
				t.Fatal(err)
			}
			k, err := LoadOrCreateKey(path)
			if err == nil || !strings.Contains(err.Error(), c.want) || !k.IsZero() {
				t.Fatalf("error %v, want one with %q", err, c.want)
			}
			if text := strings.TrimSpace(c.text); text != "" && strings.Contains(err.Error(), text) {
				t.Errorf("the error shows the file's text: %v", err)
			}
		})
	}
	if _, err := LoadOrCreateKey(t.TempDir()); err == nil {
		t.Error("a directory was taken for a key")
	}
	if _, err := LoadOrCreateKey(filepath.Join(t.TempDir(), "no", "such", "dir")); err == nil {
		t.Error("a key was stored nowhere")
	}
}

func TestPrivateKeyIsNeverShown(t *testing.T) {
	k := NewPrivateKey()
	raw := k.Reveal()
	type wrapped struct {
		A int
		K PrivateKey
		k PrivateKey
		p *PrivateKey
	}
	w := wrapped{1, k, k, &k}
	var log bytes.Buffer
	slog.New(slog.NewTextHandler(&log, nil)).Info("x", "key", k, "in", w)
	slog.New(slog.NewJSONHandler(&log, nil)).Info("x", "key", k, "in", w)
	out := log.String()
	for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%x", "%X", "%d", "%q"} {
		out += fmt.Sprintf(verb, k) + fmt.Sprintf(verb, &k) + fmt.Sprintf(verb, w) + fmt.Sprintf(verb, []PrivateKey{k})
	}
	if j, err := json.Marshal(w); err == nil {
		t.Errorf("a key was encoded: %s", j)
	}
	for _, form := range []string{
		fmt.Sprintf("%x", raw), fmt.Sprintf("%X", raw), fmt.Sprintf("%d %d %d", raw[0], raw[1], raw[2]),
		PublicKey(raw).String(), fmt.Sprintf("%#x, %#x", raw[0], raw[1]),
	} {
		if strings.Contains(out, form) {
			t.Errorf("the key shows as %s", form)
		}
	}
}

func TestPublicKey(t *testing.T) {
	k := NewPrivateKey()
	raw := k.Reveal()
	want, err := curve25519.X25519(raw[:], curve25519.Basepoint)
	if err != nil || !bytes.Equal(want, func() []byte { p := k.Public(); return p[:] }()) {
		t.Errorf("public key differs from X25519: %v", err)
	}
	p, err := ParsePublicKey(k.Public().String())
	if err != nil || p != k.Public() {
		t.Errorf("text form does not come back: %v", err)
	}
	text, _ := json.Marshal(p)
	var q PublicKey
	if err := json.Unmarshal(text, &q); err != nil || q != p {
		t.Errorf("JSON form does not come back: %v", err)
	}
	for _, bad := range []string{"", "AAAA", strings.Repeat("A", 44), p.String() + "A", p.String()[:43]} {
		if _, err := ParsePublicKey(bad); err == nil {
			t.Errorf("%q was taken for a key", bad)
		}
	}
}

package doctor

import (
	"encoding/pem"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

// apiServer starts an API server whose clock is an hour ahead, for clients with the token.
func apiServer(t *testing.T, mayList bool) Options {
	t.Helper()
	s := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Date", time.Now().Add(time.Hour).UTC().Format(http.TimeFormat))
		switch {
		case r.Header.Get("Authorization") != "Bearer secret":
			w.WriteHeader(http.StatusUnauthorized)
		case r.URL.Path == "/version":
			_, _ = w.Write([]byte("{}"))
		case r.URL.Path == "/api/v1/nodes" && mayList:
			_, _ = w.Write([]byte(`{"items":[{"metadata":{"name":"n1","annotations":{"tapestry.dev/wireguard-public-key":"key1"}}},{"metadata":{"name":"n2"}}]}`))
		default:
			w.WriteHeader(http.StatusForbidden)
		}
	}))
	t.Cleanup(s.Close)
	dir := t.TempDir()
	ca := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: s.Certificate().Raw})
	for name, data := range map[string][]byte{"ca.crt": ca, "token": []byte("secret\n")} {
		if err := os.WriteFile(filepath.Join(dir, name), data, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return Options{APIServer: s.URL + "/", Credentials: dir}
}

func TestAskAPI(t *testing.T) {
	a := askAPI(t.Context(), apiServer(t, true))
	if a.Error != "" || a.KeysError != "" {
		t.Fatalf("%+v", a)
	}
	if diff := cmp.Diff(map[string]string{"n1": "key1", "n2": ""}, a.Keys); diff != "" {
		t.Error(diff)
	}
	if off := a.Offset - time.Hour; off < -2*time.Second || off > 2*time.Second || a.Margin <= 0 {
		t.Errorf("offset %v give or take %v, want an hour", a.Offset, a.Margin)
	}
}

func TestAskAPIRefused(t *testing.T) {
	if a := askAPI(t.Context(), apiServer(t, false)); a.Error != "" || a.Keys != nil || !strings.Contains(a.KeysError, "403") {
		t.Errorf("%+v", a)
	}
	o := apiServer(t, true)
	if err := os.WriteFile(filepath.Join(o.Credentials, "token"), []byte("other"), 0o600); err != nil {
		t.Fatal(err)
	}
	if a := askAPI(t.Context(), o); !strings.Contains(a.Error, "401") {
		t.Errorf("%+v", a)
	}
	o.Credentials = t.TempDir()
	if a := askAPI(t.Context(), o); !strings.Contains(a.Error, "no credentials") {
		t.Errorf("%+v", a)
	}
}

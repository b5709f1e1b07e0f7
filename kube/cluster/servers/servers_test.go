package servers

import (
	"crypto/tls"
	"crypto/x509"
	"io"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// named starts a server that answers with its name and the request's body.
func named(t *testing.T, name string) *httptest.Server {
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		_, _ = io.WriteString(w, name+" "+r.Host+string(body))
	}))
	t.Cleanup(s.Close)
	return s
}

func ask(t *testing.T, rt http.RoundTripper, path, body string) string {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, "http://nobody.invalid"+path, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	resp, err := rt.RoundTrip(req)
	if err != nil {
		return "error " + err.Error()
	}
	defer resp.Body.Close()
	data, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return string(data)
}

func hostOf(s *httptest.Server) string { return strings.TrimPrefix(s.URL, "http://") }

func TestFailover(t *testing.T) {
	a, b := named(t, "a"), named(t, "b")
	s, err := New([]string{a.URL, b.URL}, filepath.Join(t.TempDir(), "servers"))
	if err != nil {
		t.Fatal(err)
	}
	base := &http.Transport{}
	defer base.CloseIdleConnections()
	rt := s.Wrap(base)
	if s.Current() != "" {
		t.Errorf("%s is said to have answered", s.Current())
	}
	if got, want := ask(t, rt, "/", "!"), "a "+hostOf(a)+"!"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
	a.CloseClientConnections()
	a.Close()
	// The body is sent again, and the server that answered comes first from now on.
	if got, want := ask(t, rt, "/", "!"), "b "+hostOf(b)+"!"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
	if order := s.order(); s.Current() != hostOf(b) || order[0].Host != hostOf(b) || len(order) != 2 {
		t.Errorf("current %q, order %v", s.Current(), order)
	}
	b.CloseClientConnections()
	b.Close()
	if got := ask(t, rt, "/", ""); !strings.Contains(got, hostOf(a)+": ") || !strings.Contains(got, hostOf(b)+": ") {
		t.Errorf("the error does not name both servers: %s", got)
	}
}

// A server that says it is not ready is passed over, unless it is the last.
func TestProbe(t *testing.T) {
	sick := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusInternalServerError) }))
	defer sick.Close()
	well := named(t, "well")
	s, err := New([]string{sick.URL, well.URL}, "")
	if err != nil {
		t.Fatal(err)
	}
	base := &http.Transport{}
	defer base.CloseIdleConnections()
	rt := s.Wrap(base)
	if got := ask(t, rt, "/other", ""); got != "" {
		t.Errorf("an answer of failure to a request is an answer; got %q", got)
	}
	if got := ask(t, rt, ProbePath, ""); !strings.HasPrefix(got, "well") || s.Current() != hostOf(well) {
		t.Errorf("got %q from %s", got, s.Current())
	}
}

// The certificate is checked against the address in use, not against the first one.
func TestServerName(t *testing.T) {
	s := httptest.NewTLSServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) {}))
	defer s.Close()
	pool := x509.NewCertPool()
	pool.AddCert(s.Certificate())
	base := &http.Transport{TLSClientConfig: &tls.Config{RootCAs: pool}}
	defer base.CloseIdleConnections()
	list, err := New([]string{"https://127.0.0.1:1", s.URL}, "")
	if err != nil {
		t.Fatal(err)
	}
	if got := ask(t, list.Wrap(base), "/", ""); got != "" {
		t.Error(got)
	}
	// The certificate of httptest is for 127.0.0.1 and not for localhost.
	if list, err = New([]string{strings.Replace(s.URL, "127.0.0.1", "localhost", 1)}, ""); err != nil {
		t.Fatal(err)
	}
	base.CloseIdleConnections()
	if got := ask(t, list.Wrap(base), "/", ""); !strings.Contains(got, "certificate") {
		t.Errorf("got %q", got)
	}
}

func TestLearn(t *testing.T) {
	file := filepath.Join(t.TempDir(), "servers")
	configured := []string{"https://192.0.2.1:6443"}
	s, err := New(configured, file)
	if err != nil {
		t.Fatal(err)
	}
	one, two := netip.MustParseAddrPort("192.0.2.1:6443"), netip.MustParseAddrPort("192.0.2.2:6443")
	if err := s.Learn([]netip.AddrPort{two, one, two}); err != nil {
		t.Fatal(err)
	}
	stamp := time.Unix(1, 0)
	if err := os.Chtimes(file, stamp, stamp); err != nil {
		t.Fatal(err)
	}
	for _, list := range [][]netip.AddrPort{{one, two}, nil} {
		if err := s.Learn(list); err != nil {
			t.Fatal(err)
		}
	}
	if info, err := os.Stat(file); err != nil || !info.ModTime().Equal(stamp) {
		t.Errorf("the file was written again though nothing changed: %v", err)
	}
	again, err := New(configured, file)
	if err != nil {
		t.Fatal(err)
	}
	if order := again.order(); len(order) != 2 || order[0].Host != one.String() || order[1].String() != "https://192.0.2.2:6443" {
		t.Errorf("after a restart: %v", order)
	}
	if err := os.WriteFile(file, []byte("[\"192."), 0o600); err != nil {
		t.Fatal(err)
	}
	if again, err = New(configured, file); err != nil || len(again.order()) != 1 {
		t.Errorf("a torn file: %v", err)
	}
	late := &Servers{file: filepath.Join(t.TempDir(), "such", "file")}
	if err := late.Learn([]netip.AddrPort{one}); err == nil {
		t.Error("an address that could not be kept is no error")
	}
	if err := os.Mkdir(filepath.Dir(late.file), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := late.Learn([]netip.AddrPort{one}); err != nil {
		t.Error(err)
	}
	if _, err := os.Stat(late.file); err != nil {
		t.Errorf("what could not be kept once is not kept later: %v", err)
	}
}

func TestNewRefuses(t *testing.T) {
	for text, want := range map[string]string{
		"":                 "expected one like https://",
		"10.0.0.1:6443":    "expected one like https://",
		"ftp://10.0.0.1":   "expected one like https://",
		"http://10.0.0.1":  "use https",
		"http://api.local": "use https",
	} {
		if _, err := New([]string{text}, ""); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: got %v, want %q", text, err, want)
		}
	}
	if _, err := New(nil, ""); err == nil {
		t.Error("no address is no error")
	}
}

func TestWithin(t *testing.T) {
	s, err := New([]string{"https://10.0.0.1:6443", "https://10.96.0.1", "https://api.example.com", "https://[fd00::1]:443"}, "")
	if err != nil {
		t.Fatal(err)
	}
	got := s.Within([]netip.Prefix{netip.MustParsePrefix("10.96.0.0/16"), netip.MustParsePrefix("fd00::/112")})
	if strings.Join(got, " ") != "https://10.96.0.1 https://[fd00::1]:443" {
		t.Errorf("got %v", got)
	}
}

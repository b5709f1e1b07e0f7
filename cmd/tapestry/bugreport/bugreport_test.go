package bugreport

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/urfave/cli/v2"

	"tapestry.dev/tapestry/localapi"
	"tapestry.dev/tapestry/visible/visibletest"
)

// unpack returns the files of an archive, which are all in one directory, and their names in order.
func unpack(t *testing.T, archive []byte) (map[string]string, []string) {
	t.Helper()
	zip, err := gzip.NewReader(bytes.NewReader(archive))
	if err != nil {
		t.Fatal(err)
	}
	files := map[string]string{}
	var names []string
	for r := tar.NewReader(zip); ; {
		h, err := r.Next()
		if err == io.EOF {
			return files, names
		}
		if err != nil {
			t.Fatal(err)
		}
		b, err := io.ReadAll(r)
		if err != nil {
			t.Fatal(err)
		}
		_, name, _ := strings.Cut(h.Name, "/")
		files[name] = string(b)
		names = append(names, name)
	}
}

// A part that fails, or is too long, costs no other, and the archive says so.
func TestPack(t *testing.T) {
	write := func(text string, err error) func(context.Context, io.Writer) error {
		return func(_ context.Context, w io.Writer) error {
			_, werr := io.WriteString(w, text)
			return errors.Join(werr, err)
		}
	}
	var b bytes.Buffer
	err := pack(t.Context(), &b, "d", time.Unix(1e9, 0), []part{
		{"a", write("first", nil)},
		{"b", write("some of it", errors.New("password=hunter2 is wrong"))},
		{"c", write("", errors.New("nothing of it"))},
		{"d", write("its begin", errFull)},
		{"e", write("password: hunter2, last", nil)},
		{"f", write("", nil)},
	})
	if err != nil {
		t.Fatal(err)
	}
	files, names := unpack(t, b.Bytes())
	if want := []string{"a", "b", "d", "e", "f", "contents.txt"}; !slices.Equal(names, want) {
		t.Errorf("the archive has %q, want %q", names, want)
	}
	if files["a"] != "first" || files["b"] != "some of it" || files["d"] != "its begin" || files["e"] != "password: (left out), last" {
		t.Errorf("%q", files)
	}
	if want := "a: whole\nb: password=(left out) is wrong\nc: nothing of it\nd: only its first 16777216 bytes\ne: whole\nf: whole\n"; files["contents.txt"] != want {
		t.Errorf("contents.txt is\n%s\nwant\n%s", files["contents.txt"], want)
	}
	ended, end := context.WithCancel(t.Context())
	end()
	if err := pack(ended, io.Discard, "d", time.Now(), []part{{"a", write("", nil)}}); !errors.Is(err, context.Canceled) {
		t.Errorf("when nobody waits any more: %v", err)
	}
}

func TestLimited(t *testing.T) {
	l := limited{left: 5}
	if n, err := io.Copy(&l, strings.NewReader("1234567")); n != 5 || err != errFull || string(l.bytes) != "12345" {
		t.Errorf("%d bytes, %v: %q", n, err, l.bytes)
	}
	l = limited{left: 5}
	if n, err := io.WriteString(&l, "12345"); n != 5 || err != nil {
		t.Errorf("%d bytes, %v", n, err)
	}
}

func TestWithoutSecrets(t *testing.T) {
	for _, tc := range []struct{ text, want string }{
		{"nothing special: 10.0.0.1:80", "nothing special: 10.0.0.1:80"},
		{"-----BEGIN EC PRIVATE KEY-----\nMHcC\nAQEE\n-----END EC PRIVATE KEY-----\nrest", "(a private key, left out)\nrest"},
		{`{"key":"-----BEGIN PRIVATE KEY-----\nMHcC\n-----END PRIVATE KEY-----\n"}`, `{"key":"(a private key, left out)\n"}`},
		{"-----BEGIN PRIVATE KEY-----\nMHcC and then it was cut", "(a private key, left out)"},
		{"-----BEGIN CERTIFICATE-----\nMHcC", "-----BEGIN CERTIFICATE-----\nMHcC"},
		{"the token eyJhbGciOi.eyJpc3Mi.c2ln here", "the token (a token, left out) here"},
		{"Authorization: Bearer abcdefgh.ijkl", "Authorization: Bearer (left out)"},
		{"authorization: basic dXNlcjpwYXNz", "authorization: basic (left out)"},
		{"dial https://user:pass@host/path", "dial https://(left out)@host/path"},
		{"mail to a@b", "mail to a@b"},
		{`{"password":"a \"b\" c","port":1}`, `{"password":(left out),"port":1}`},
		{`"{\"password\":\"abc\",\"port\":1}"`, `"{\"password\":(left out),\"port\":1}"`},
		{"passwd=abc user=x", "passwd=(left out) user=x"},
		{"privateKey: qLx= peer", "privateKey: (left out) peer"},
		{"client-secret: abc", "client-secret: (left out)"},
		{"publicKey: qLx=", "publicKey: qLx="},
		{"Secret d/s: has no key tls.key", "Secret d/s: has no key tls.key"},
		{"spec.tls[0].secretName: is empty", "spec.tls[0].secretName: is empty"},
	} {
		if got := string(withoutSecrets([]byte(tc.text))); got != tc.want {
			t.Errorf("%q becomes %q, want %q", tc.text, got, tc.want)
		}
	}
}

// agent serves a local API with one row of whatever in each table, and returns its socket.
func agent(t *testing.T) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "api.sock")
	l, err := localapi.Listen(path, localapi.Options{})
	if err != nil {
		t.Fatal(err)
	}
	s := &localapi.Server{Node: func(context.Context) localapi.Node {
		return localapi.Node{Name: "n1", Version: "v1", Source: "manifests"}
	}, Tables: []localapi.Source{
		filled(localapi.Peers), filled(localapi.Pods), filled(localapi.Frontends), filled(localapi.Problems), filled(localapi.Policies), filled(localapi.StagedFlows), filled(localapi.DescriptorShares),
		filled(localapi.Turns), filled(localapi.Claims), filled(localapi.Sessions), filled(localapi.Counters),
		// There are no routes.
	}}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- s.Serve(ctx, l) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	return path
}

func filled[T any](table localapi.Table[T]) localapi.Source {
	return table.From(func(context.Context) ([]T, error) {
		list := make([]T, 1)
		visibletest.Fill(&list[0])
		return list, nil
	})
}

func run(t *testing.T, out io.Writer, args ...string) error {
	t.Helper()
	app := &cli.App{Writer: out, ErrWriter: io.Discard, Commands: []*cli.Command{Command()}, ExitErrHandler: func(*cli.Context, error) {}}
	return app.RunContext(t.Context(), append([]string{"tapestry", "bugreport"}, args...))
}

func TestCommand(t *testing.T) {
	socket, dir := agent(t), t.TempDir()
	log := filepath.Join(dir, "agent.log")
	if err := os.WriteFile(log, []byte("level=INFO token=abc\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	name := filepath.Join(dir, "report.tar.gz")
	var out strings.Builder
	if err := run(t, &out, "--socket", socket, "--log", log, "-o", name); err != nil || out.String() != name+"\n" {
		t.Fatalf("%v, %q", err, out.String())
	}
	archive, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	files, names := unpack(t, archive)
	contents := files["contents.txt"]
	for _, table := range localapi.All {
		is, _ := table.Is()
		if file := "tables/" + is + ".json"; is != "bgp" && (!slices.Contains(names, file) || !strings.Contains(contents, file+": whole\n")) {
			t.Errorf("%s is not there, or not whole: %s", file, contents)
		}
	}
	if !strings.Contains(contents, `tables/bgp.json: there is no table "bgp"`) {
		t.Errorf("what this agent cannot tell is not said: %s", contents)
	}
	if !strings.Contains(files["status.txt"], "n1") || !strings.Contains(files["doctor.json"], `"check"`) || !strings.Contains(files["node.json"], `"name": "n1"`) ||
		!strings.Contains(files["machine.txt"], "== /proc/self/limits\n") || !strings.Contains(files["interfaces.txt"], "mtu") || files["logs/1-agent.log"] != "level=INFO token=(left out)\n" {
		t.Errorf("the files are %q", names)
	}
	for _, name := range []string{"tables/pods.json", "tables/problems.json"} {
		visibletest.Check(t, name, files[name])
	}
	// What is there is not overwritten.
	if err := run(t, io.Discard, "--socket", socket, "-o", name); !errors.Is(err, fs.ErrExist) {
		t.Errorf("the file is there: %v", err)
	}
	// Without an agent there is what the machine shows.
	var b bytes.Buffer
	if err := run(t, &b, "--socket", filepath.Join(dir, "nobody.sock"), "-o", "-"); err != nil {
		t.Fatal(err)
	}
	files, _ = unpack(t, b.Bytes())
	if !strings.Contains(files["contents.txt"], "node.json: the agent of this node cannot be reached") || files["machine.txt"] == "" {
		t.Errorf("without an agent: %s", files["contents.txt"])
	}
}

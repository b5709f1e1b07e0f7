package hubble

import (
	"bufio"
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"tapestry.dev/tapestry/hubble"
)

// command returns the path of the real command hubble, which it builds if nobody says where it is.
var command = sync.OnceValues(func() (string, error) {
	if path := os.Getenv("HUBBLE"); path != "" {
		return filepath.Abs(path)
	}
	dir, err := os.MkdirTemp("", "hubble-")
	if err != nil {
		return "", err
	}
	path := filepath.Join(dir, "hubble")
	build := exec.Command("go", "build", "-C", "command", "-o", path, "github.com/cilium/cilium/hubble")
	build.Stderr = os.Stderr
	return path, build.Run()
})

func TestMain(m *testing.M) {
	code := m.Run()
	if path, err := command(); err == nil && os.Getenv("HUBBLE") == "" {
		os.RemoveAll(filepath.Dir(path))
	}
	os.Exit(code)
}

// run prepares the command for a server, with a home of its own.
func run(t *testing.T, socket string, args ...string) *exec.Cmd {
	t.Helper()
	path, err := command()
	if err != nil {
		t.Fatalf("build the command hubble: %v", err)
	}
	c := exec.CommandContext(t.Context(), path, append(args, "--server", "unix://"+socket)...)
	c.Env = append(os.Environ(), "HOME="+t.TempDir(), "XDG_CONFIG_HOME=", "NO_COLOR=1")
	return c
}

// What people type, and what they see.
func TestCommand(t *testing.T) {
	socket := serve(t, &recorded{past: events()})
	const (
		syn    = "shop/web-1:40000 (ID:) -> db/pg-0:5432 (ID:) to-overlay FORWARDED (TCP Flags: SYN)"
		denied = "db/pg-0:5432 (ID:) <> shop/web-1:40000 (ID:) Policy denied DROPPED (denied)"
		answer = "shop/web-1:40000 (ID:) <- 10.96.0.10:53 (host) dns-response proxy FORWARDED (DNS Answer NXDOMAIN)"
	)
	for name, c := range map[string]struct {
		args string
		want []string // in this order, in what is printed without identities
		less []string
	}{
		"status":  {"status", []string{"Ok", "Current/Max Flows: 6/4,096", "Connected Nodes: 1/1"}, nil},
		"all":     {"observe", []string{syn, denied, answer}, nil},
		"last":    {"observe --last 5", []string{denied, answer}, []string{syn}},
		"first":   {"observe --first 1", []string{syn}, []string{denied}},
		"pod":     {"observe --from-pod db/pg-0", []string{denied}, []string{syn, answer}},
		"either":  {"observe --pod db/pg", []string{syn, denied}, []string{answer}},
		"space":   {"observe --namespace db", []string{syn, denied}, []string{answer}},
		"verdict": {"observe --verdict DROPPED", []string{denied}, []string{syn, answer}},
		"not":     {"observe --not --verdict DROPPED", []string{syn, answer}, []string{denied}},
		"label":   {"observe --from-label app=pg", []string{denied}, []string{syn}},
		"type":    {"observe --type drop", []string{denied}, []string{syn}},
		"dns":     {"observe --protocol dns", []string{answer}, []string{syn, denied}},
		"node":    {"observe --node-name n1 --print-node-name", []string{"[n1]: shop/web-1:40000"}, nil},
		"policy":  {"observe --print-policy-names --type policy-verdict", []string{"AUDITED BY staged (NetworkPolicy)"}, []string{syn}},
		"table":   {"observe -o table", []string{"TIMESTAMP", "shop/web-1:40000", "to-overlay"}, nil},
		"nodes":   {"list nodes", []string{"n1", "Connected"}, nil},
		"spaces":  {"list namespaces", []string{"db", "shop"}, nil},
	} {
		t.Run(name, func(t *testing.T) {
			out, err := run(t, socket, strings.Fields(c.args)...).CombinedOutput()
			text := plain(string(out))
			if err != nil {
				t.Fatalf("hubble %s: %v\n%s", c.args, err, text)
			}
			rest := text
			for _, want := range c.want {
				_, after, ok := strings.Cut(rest, want)
				if !ok {
					t.Fatalf("hubble %s does not say %q in its place:\n%s", c.args, want, text)
				}
				rest = after
			}
			for _, less := range c.less {
				if strings.Contains(text, less) {
					t.Errorf("hubble %s says %q:\n%s", c.args, less, text)
				}
			}
		})
	}
}

// plain leaves out the numbers of identities, which are hashes.
func plain(text string) string {
	for at := 0; ; {
		i := strings.Index(text[at:], "(ID:")
		if i < 0 {
			return text
		}
		at += i + len("(ID:")
		end := strings.IndexByte(text[at:], ')')
		text = text[:at] + text[at+end:]
	}
}

func TestJSON(t *testing.T) {
	out, err := run(t, serve(t, &recorded{past: events()}), "observe", "-o", "json", "--verdict", "DROPPED").Output()
	if err != nil {
		t.Fatal(err)
	}
	var is struct {
		Flow struct {
			Verdict     string
			Reason      string `json:"drop_reason_desc"`
			Destination struct {
				Pod string `json:"pod_name"`
			}
		}
	}
	if err := json.Unmarshal(out, &is); err != nil || is.Flow.Verdict != "DROPPED" || is.Flow.Reason != "POLICY_DENIED" || is.Flow.Destination.Pod != "web-1" {
		t.Errorf("%+v, %v, of\n%s", is, err, out)
	}
}

// The command shows what has been, and then each event as it comes.
func TestFollow(t *testing.T) {
	source := &recorded{past: events()[:1], coming: make(chan hubble.Flow)}
	c := run(t, serve(t, source), "observe", "--follow", "--last", "1")
	out, err := c.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	lines := bufio.NewScanner(out)
	for i, want := range []string{"to-overlay", "Policy denied", "dns-response"} {
		if i > 0 {
			source.coming <- events()[i]
		}
		if !lines.Scan() || !strings.Contains(lines.Text(), want) {
			t.Fatalf("line %d is %q, want %q", i, lines.Text(), want)
		}
	}
	_ = c.Process.Kill()
	_ = c.Wait()
}

package e2e

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"math/big"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"tapestry.dev/tapestry/test/lab"
)

// mistake is a file that must be refused.
type mistake struct {
	name string
	// yaml has the mistake in the line with "# here", or in an object that begins there.
	yaml string
	// says lists what the message must contain: the object, the field, what is wrong and what to do. The file and the
	// line are always wanted.
	says []string
}

func pinned(name, node, addr string) string {
	return strings.Replace(podYAML(name, node), "annotations: {", "annotations: {tapestry.dev/pod-ips: \""+addr+"\", ", 1)
}

// here marks the first line after the document separator.
func here(yaml string) string {
	return strings.Replace(yaml, "\n", "\n# here\n", 1)
}

func mistakes(t *testing.T) []mistake {
	return []mistake{
		{"pod address twice", baseYAML + pinned("one", "node-1", "10.244.1.77") + here(pinned("two", "node-1", "10.244.1.77")),
			[]string{"Pod default/two", "metadata.annotations[tapestry.dev/pod-ips]", "10.244.1.77", "address of Pod default/one", "choose another"}},
		{"pod address out of range", baseYAML + here(pinned("one", "node-1", "10.9.1.77")),
			[]string{"Pod default/one", "metadata.annotations[tapestry.dev/pod-ips]", "10.9.1.77", "outside of the podCIDRs of Node node-1", "10.244.1.0/24", "choose an address inside"}},
		{"pod address of the node", baseYAML + here(pinned("one", "node-1", "10.244.1.1")),
			[]string{"Pod default/one", "metadata.annotations[tapestry.dev/pod-ips]", "10.244.1.1", "kept for Node node-1", "choose another"}},
		{"podCIDRs overlap", baseYAML + "---\napiVersion: v1\nkind: Node\nmetadata: {name: node-3}\nspec: {podCIDRs: [10.77.0.0/16]}\n" +
			here("---\napiVersion: v1\nkind: Node\nmetadata: {name: node-4}\nspec: {podCIDRs: [10.77.4.0/24]}\n"),
			[]string{"Node node-4", "spec.podCIDRs[0]", "10.77.4.0/24 overlaps 10.77.0.0/16 of Node node-3", "a range of its own"}},
		{"Service without ports", baseYAML + here("---\napiVersion: v1\nkind: Service\nmetadata: {name: empty}\nspec: {selector: {app: near}}\n"),
			[]string{"Service default/empty", "spec.ports", "is empty", "add a port"}},
		{"key of another certificate", baseYAML + here(mismatchedSecret(t)),
			[]string{"Secret default/wrong-key", "data[tls.key]", "private key does not match", "private key that belongs to it"}},
		{"no YAML", baseYAML + "---\nkind: [ # here\n", []string{"this is not YAML"}},
		{"unknown field", baseYAML + "---\napiVersion: v1\nkind: Pod\nmetadata: {name: typo}\nspec:\n  containers:\n  - name: c\n    comand: [sleep] # here\n",
			[]string{"Pod default/typo", "spec.containers[0].comand", "unknown field", `did you mean "command"?`}},
	}
}

// mismatchedSecret returns a Secret with a valid certificate and a valid key of different key pairs.
func mismatchedSecret(t *testing.T) string {
	t.Helper()
	var keys [2]*ecdsa.PrivateKey
	for i := range keys {
		var err error
		if keys[i], err = ecdsa.GenerateKey(elliptic.P256(), rand.Reader); err != nil {
			t.Fatal(err)
		}
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "a.example"}, DNSNames: []string{"a.example"},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
	}
	cert, err := x509.CreateCertificate(rand.Reader, template, template, &keys[0].PublicKey, keys[0])
	if err != nil {
		t.Fatal(err)
	}
	key, err := x509.MarshalPKCS8PrivateKey(keys[1])
	if err != nil {
		t.Fatal(err)
	}
	text := func(kind string, b []byte) string {
		return strings.ReplaceAll(strings.TrimSpace(string(pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: b}))), "\n", "\n    ")
	}
	return fmt.Sprintf("---\napiVersion: v1\nkind: Secret\nmetadata: {name: wrong-key}\ntype: kubernetes.io/tls\nstringData:\n  tls.crt: |\n    %s\n  tls.key: |\n    %s\n",
		text("CERTIFICATE", cert), text("PRIVATE KEY", key))
}

// told checks the sentence about the mistake in the file at path.
func (m *mistake) told(t *testing.T, sentence, path string) {
	t.Helper()
	contains(t, sentence, m.says...)
	line := 1 + strings.Count(m.yaml[:strings.Index(m.yaml, "# here")], "\n")
	// An object begins in the line after the mark, which is then a line of its own. A syntax error is reported with the
	// line at which the parser gave up, which may be the next line.
	for _, l := range []int{line, line + 1} {
		if strings.Contains(sentence, fmt.Sprintf("%s:%d: ", path, l)) {
			return
		}
	}
	t.Errorf("%q does not say %s:%d", sentence, path, line)
}

// TestRefusedAtStart starts labs with mistakes from the command line. Each prints one sentence, exits with status 1,
// and leaves nothing behind.
func TestRefusedAtStart(t *testing.T) {
	for _, m := range mistakes(t) {
		t.Run(m.name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "lab.yaml")
			if err := os.WriteFile(path, []byte(m.yaml), 0o600); err != nil {
				t.Fatal(err)
			}
			got := tapestryLab(t, "up", "--name", "refused", "-f", path)
			if got.code != 1 || got.stdout != "" {
				t.Errorf("exit status %d, want 1; stdout %q", got.code, got.stdout)
			}
			if strings.Count(strings.TrimSpace(got.stderr), "\n") > 0 {
				t.Errorf("more than one sentence: %q", got.stderr)
			}
			m.told(t, got.stderr, path)
			state, err := lab.DefaultStateDir()
			if err != nil {
				t.Fatal(err)
			}
			if names, err := lab.Names(state); err != nil || slices.Contains(names, "refused") {
				t.Errorf("left %v, %v", names, err)
			}
		})
	}
}

// TestRefusedWhileRunning puts the same mistakes into the file of a lab under traffic. Nothing of the version with the
// mistake is applied, nobody is harmed, and a good version afterwards is applied.
func TestRefusedWhileRunning(t *testing.T) {
	c := up(t, "edited", baseYAML)
	talking := c.talk(t, lab.Pod("client"), at(c.addr(t, "near", false), 9000), at(c.addr(t, "far", true), 9000), at(c.addr(t, "svc/far", false), 81))
	before := c.status(t)
	pods := len(before.Pods)
	for i, m := range mistakes(t) {
		t.Run(m.name, func(t *testing.T) {
			// Every version also has a good pod, which must not be started.
			m.yaml += podYAML("half", "node-1")
			c.write(t, m.yaml)
			st := c.until(t, "the mistake is told", func(st *lab.Status) bool {
				return st.ApplyError != "" && st.ApplyError != before.ApplyError
			})
			m.told(t, st.ApplyError, c.file)
			contains(t, tapestryLab(t, "ps", "--name", "edited").stdout, m.says...)
			if st.Applied != before.Applied || len(st.Pods) != len(before.Pods) || len(st.Nodes) != len(before.Nodes) || len(st.Services) != len(before.Services) {
				t.Errorf("a version with a mistake was applied: %+v", st)
			}
			for _, p := range before.Pods {
				if now := podOf(st, p.Name); now.UID != p.UID || !slices.Equal(now.PIDs, p.PIDs) || !now.Ready {
					t.Errorf("pod %s was harmed: %+v became %+v", p.Name, p, *now)
				}
			}
			// A good version is applied. The next mistake is then reported again.
			c.edit(t, baseYAML+podYAML(fmt.Sprintf("good-%d", i), "node-2"))
			before = c.until(t, "the good pod of the version before is gone", func(st *lab.Status) bool { return len(st.Pods) == pods+1 })
			c.reaches(t, lab.Pod("client"), "tcp", at(c.addr(t, fmt.Sprintf("good-%d", i), false), 9000), fmt.Sprintf("good-%d", i))
		})
	}
	talking.unharmed(t)
}

// TestOnlyWarned brings up a lab that works in part. The sentence says what does not work, and the rest works.
func TestOnlyWarned(t *testing.T) {
	path := filepath.Join(t.TempDir(), "lab.yaml")
	yaml := nodesYAML + podYAML("client", "node-1") + podYAML("near", "node-1") + serviceYAML("nobody", "nobody", 0)
	if err := os.WriteFile(path, []byte(yaml), 0o600); err != nil {
		t.Fatal(err)
	}
	// The lab is in the background, like that of a user who continues in the same terminal.
	if got := tapestryLab(t, "up", "--name", "warned", "-f", path, "--detach", "--wait"); got.code != 0 {
		t.Fatalf("exit status %d: %s", got.code, got.stderr)
	} else {
		contains(t, got.stdout, path+":", "Service default/nobody", "spec.selector", "matches no Pod in namespace default", "compare it with the labels")
	}
	client, err := lab.Dial("warned")
	if err != nil {
		t.Fatal(err)
	}
	c := &cluster{Client: client, file: path, ctx: t.Context()}
	t.Cleanup(func() { c.down(t) })
	if a := c.ask(t, lab.Pod("client"), "tcp", at(c.addr(t, "svc/nobody", false), 81)); a.Error != "refused" {
		t.Errorf("the Service of nobody: %q, want it refused", a.Error)
	}

	// Only the pod whose command does not exist stays unready.
	c.write(t, yaml+strings.NewReplacer("args:", "command: [no-such-program]\n    args:").Replace(podYAML("bad", "node-1"))+podYAML("late", "node-1"))
	st := c.until(t, "the command is told", func(st *lab.Status) bool {
		return podOf(st, "late").Ready && problem(st, "pod default/bad", "container server", `command "no-such-program" not found`, "a program of this machine in PATH")
	})
	if podOf(st, "bad").Ready {
		t.Error("a pod without its command is ready")
	}
	for _, pod := range []string{"near", "late"} {
		c.answered(t, lab.Pod("client"), "tcp", at(c.addr(t, pod, false), 9000), pod)
	}
}

// TestAgentTwice starts the command line of a node's agent a second time.
func TestAgentTwice(t *testing.T) {
	c := up(t, "twice", baseYAML)
	pid := nodeOf(c.status(t), "node-1").PID
	cmdline, _, code, err := c.Output(c.ctx, lab.Node("node-1"), "cat", fmt.Sprintf("/proc/%d/cmdline", pid))
	if err != nil || code != 0 {
		t.Fatal(code, err)
	}
	argv := strings.Split(strings.TrimSuffix(cmdline, "\x00"), "\x00")
	if !slices.Contains(argv, "agent") {
		t.Fatalf("the agent's command line is %q", argv)
	}
	talking := c.talk(t, lab.Pod("client"), at(c.addr(t, "near", false), 9000), at(c.addr(t, "far", false), 9000))
	_, stderr, code, err := c.Output(c.ctx, lab.Node("node-1"), argv...)
	if err != nil || code != 1 {
		t.Errorf("exit status %d, want 1; %v", code, err)
	}
	contains(t, stderr, "an agent for node node-1 is already running", fmt.Sprintf("(pid %d)", pid), "stop it first")
	talking.unharmed(t)
	if st := c.status(t); nodeOf(st, "node-1").PID != pid || nodeOf(st, "node-1").Agent != "ready" {
		t.Errorf("the first agent was harmed: %+v", nodeOf(st, "node-1"))
	}
}

package agent

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"
	"unicode"

	"tapestry.dev/tapestry/kube"
	"tapestry.dev/tapestry/kube/cluster/clustertest"
	"tapestry.dev/tapestry/localapi"
	"tapestry.dev/tapestry/test/await"
	"tapestry.dev/tapestry/test/lab"
	"tapestry.dev/tapestry/visible/visibletest"
)

// output collects the output of processes.
type output struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (o *output) Write(p []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.b.Write(p)
}

func (o *output) String() string {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.b.String()
}

// secrets are texts that must not be printed, and their names.
type secrets map[string]string

// add adds a text in all forms in which it could be printed: as it is, line by line, in base64 and in hexadecimal
// digits.
func (s secrets) add(name, text string) {
	for i, form := range append(strings.Split(text, "\n"), text, base64.StdEncoding.EncodeToString([]byte(text)), hex.EncodeToString([]byte(text))) {
		if len(form) >= 12 && !strings.HasPrefix(form, "-----") {
			s[form] = fmt.Sprintf("%s (form %d)", name, i)
		}
	}
}

// check looks for secrets and for terminal control characters in output.
func (s secrets) check(t *testing.T, where, said string) {
	t.Helper()
	for text, name := range s {
		if strings.Contains(said, text) {
			t.Errorf("%s tells %s", where, name)
		}
	}
	for line := range strings.Lines(said) {
		if i := strings.IndexFunc(strings.TrimSuffix(line, "\n"), func(r rune) bool { return !unicode.IsPrint(r) && r != '\t' }); i >= 0 {
			t.Errorf("%s has %q in the line %q", where, line[i:min(len(line), i+4)], line)
		}
	}
}

// told returns everything that the agent reports on its sockets.
func (n *machine) told() string {
	var b strings.Builder
	if node, err := n.api.Node(n.t.Context()); err == nil {
		text, _ := json.Marshal(node)
		b.Write(text)
	}
	for _, table := range localapi.All {
		rows, _, _, err := table.Fetch(n.t.Context(), n.api)
		if err != nil {
			n.t.Error(err)
		}
		text, _ := json.Marshal(rows)
		b.Write(text)
	}
	items, err := n.keeper.List()
	if err != nil {
		n.t.Error(err)
	}
	for _, it := range items {
		b.WriteString(it.Key)
		b.Write(it.Meta)
		it.File.Close()
	}
	return b.String()
}

// say sends any bytes as a request, and reads until the other end closes.
func say(t *testing.T, addr, request string, config *tls.Config) {
	t.Helper()
	var c net.Conn
	c, err := net.DialTimeout("tcp", addr, await.Patience)
	if err == nil && config != nil {
		c = tls.Client(c, config)
	}
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(await.Patience))
	_, _ = io.WriteString(c, request)
	_ = c.(interface{ CloseWrite() error }).CloseWrite()
	_, _ = io.Copy(io.Discard, c)
}

// TestSecretsAndHostileText runs a whole agent at the highest log level. The agent gets secrets in every way, valid
// and broken, and hostile texts wherever others may write. Nothing that the agent prints may contain a secret or a
// terminal control character.
func TestSecretsAndHostileText(t *testing.T) {
	hidden := secrets{}
	certificate, key, err := lab.SelfSigned("web.example")
	if err != nil {
		t.Fatal(err)
	}
	hidden.add("the key of a certificate", string(key))
	broken := strings.Replace(string(key), "\n", "\nbroken+", 1)
	hidden.add("a broken key", broken)
	b64 := func(s string) string { return base64.StdEncoding.EncodeToString([]byte(s)) }
	secret := func(name, crt, key string) string {
		return fmt.Sprintf("apiVersion: v1\nkind: Secret\nmetadata: {name: %s, namespace: default}\ntype: kubernetes.io/tls\ndata: {tls.crt: %s, tls.key: %s}\n---\n", name, b64(crt), b64(key))
	}
	bad := strconv.QuoteToASCII(visibletest.Mark + "\x1b[2J\r\nlevel=ERROR\tx\u009b\u202e") // valid as YAML too
	ingress := func(name, host, secret string) string {
		return fmt.Sprintf("apiVersion: networking.k8s.io/v1\nkind: Ingress\nmetadata: {name: %s, annotations: {x: %s}}\nspec:\n  tls: [{secretName: %s, hosts: [%s]}]\n"+
			"  rules: [{host: %s, http: {paths: [{path: %s, pathType: Prefix, backend: {service: {name: web, port: {number: 80}}}}]}}]\n---\n", name, bad, secret, host, host, bad)
	}

	n := newMachine(t)
	var out output
	n.stderr = &out
	n.source = append(n.source, "--log-level", "debug", "--ingress-http", "127.0.0.1:8081", "--ingress-https", "127.0.0.1:8443")
	n.manifest("secrets.yaml", secret("good", string(certificate), string(key))+secret("broken", string(certificate), broken)+
		secret("swapped", string(key), string(certificate))+ingress("good", "web.example", "good")+ingress("broken", "broken.example", "broken")+
		ingress("swapped", bad, "swapped"))
	n.manifest("services.yaml", fmt.Sprintf("apiVersion: v1\nkind: Service\nmetadata: {name: web, annotations: {service.kubernetes.io/topology-mode: %[1]s}}\nspec: {type: ExternalName, externalName: %[1]s}\n---\n"+
		"apiVersion: v1\nkind: Service\nmetadata: {name: lb}\nspec: {clusterIP: %[1]s, loadBalancerSourceRanges: [%[1]s], ports: [{port: 80, name: %[1]s}]}\n---\n"+
		"apiVersion: v1\nkind: Node\nmetadata: {name: n2, annotations: {tapestry.dev/wireguard-public-key: %[1]s, tapestry.dev/wireguard-endpoint: %[1]s}, labels: {topology.kubernetes.io/zone: %[1]s}}\n"+
		"spec: {podCIDRs: [%[1]s]}\nstatus: {addresses: [{type: InternalIP, address: %[1]s}]}\n---\n"+
		"apiVersion: v1\nkind: Pod\nmetadata: {name: p, annotations: {tapestry.dev/pod-ips: %[1]s}}\nspec: {nodeName: n1, containers: [{name: c, ports: [{containerPort: 1, hostPort: 1, hostIP: %[1]s, protocol: %[1]s}]}]}\n", bad))
	defer func() {
		if t.Failed() {
			t.Logf("the agent said %q", out.String())
		}
	}()
	n.start()
	n.ready()
	if b, err := os.ReadFile(filepath.Join(n.dir, "state", "wireguard.key")); err != nil {
		t.Error(err)
	} else {
		text := strings.TrimSpace(string(b))
		raw, err := base64.StdEncoding.DecodeString(text)
		if err != nil {
			t.Error(err)
		}
		hidden.add("WireGuard's key", text)
		hidden.add("WireGuard's key", string(raw))
	}
	for _, addr := range []string{"127.0.0.1:8081", "127.0.0.1:8443"} {
		n.until("Ingress is served", func() bool {
			c, err := net.DialTimeout("tcp", addr, await.Patience)
			if err == nil {
				c.Close()
			}
			return err == nil
		})
	}
	// Clients send their credentials in valid and broken requests.
	const bearer, cookie = "Bearer eyJsupersecret.token.signature", "session=0123456789abcdef-cookie"
	hidden.add("a client's token", bearer)
	hidden.add("a client's cookie", cookie)
	headers := "Host: web.example\r\nAuthorization: " + bearer + "\r\nCookie: " + cookie + "\r\n"
	for _, request := range []string{
		"GET / HTTP/1.1\r\n" + headers + "Connection: close\r\n\r\n",
		"GET / HTTP/1.1\r\n" + headers + " folded: x\r\nbroken header\r\n\r\n",
		"GET /\x1b[2J HTTP/1.1\r\n" + headers + "\r\n",
		"GET /?token=" + bearer + " HTTP/9.9\r\n" + headers + "\r\n",
		bearer + "\r\n\r\n", "\x16\x03\x01" + cookie,
	} {
		say(t, "127.0.0.1:8081", request, nil)
		say(t, "127.0.0.1:8443", request, &tls.Config{InsecureSkipVerify: true, ServerName: "web.example"})
		say(t, "127.0.0.1:8443", request, nil)
	}
	say(t, "127.0.0.1:8443", "x", &tls.Config{InsecureSkipVerify: true, ServerName: "nobody." + strings.Repeat("x", 60) + ".example"})
	// A pod has a name with control characters.
	s := n.sandbox("c1", "web\x1b[2J")
	if err := s.run("ADD"); err == nil || strings.Contains(err.Error(), "\x1b") {
		t.Errorf("a pod with an escape in its name: %v", err)
	}
	n.until("what is wrong with the objects is told", func() bool { return strings.Contains(n.problems(), "key pair cannot be used") })
	if !strings.Contains(n.problems(), visibletest.Mark) {
		t.Errorf("no problem quotes what others wrote: the test tries nothing\n%s", n.problems())
	}
	// Manifests become unusable.
	hidden.add("a password", "hunter2hunter2hunter2")
	for i, text := range []string{"stringData: hunter2hunter2hunter2", "stringData: {p: *hunter2hunter2hunter2}", "data: {tls.key: hunter2hunter2hunter2!}"} {
		n.manifest("broken.yaml", "apiVersion: v1\nkind: Secret\nmetadata: {name: x}\n"+text+"\n")
		n.until("the agent says that the manifests cannot be used", func() bool {
			return strings.Count(out.String(), "the manifests cannot be used") > i
		})
	}
	hidden.check(t, "what it tells", n.told())
	n.kill()
	if !strings.Contains(out.String(), "level=") {
		t.Error("nothing was logged")
	}
	hidden.check(t, "the log", out.String())
}

// agentWith runs an agent with these flags until it ends, until its output satisfies until, or for a while. It returns
// the output.
func agentWith(t *testing.T, n *machine, until func(said string) bool, flags ...string) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), await.Patience)
	defer cancel()
	var out output
	cmd := exec.CommandContext(ctx, "/proc/self/exe", append([]string{"--node", "n1", "--state", filepath.Join(n.dir, "state"), "--log-level", "debug",
		"--keeper", filepath.Join(n.dir, "keeper.sock"), "--attach-socket", filepath.Join(n.dir, "other.sock"), "--flows", "4096", "--underlay-mtu", "1500",
		"--health-address", "", "--metrics-address", "", "--ingress-http", "", "--ingress-https", ""}, flags...)...)
	cmd.Env = append(os.Environ(), roleVar+"=agent")
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan struct{})
	go func() { defer close(ended); _ = cmd.Wait() }()
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for !until(out.String()) {
		select {
		case <-ended:
			if !until(out.String()) {
				t.Errorf("%v: it ended with %q", flags, out.String())
			}
			return out.String()
		case <-tick.C:
		}
	}
	_ = cmd.Process.Kill()
	<-ended
	return out.String()
}

// TestBrokenCredentials checks that errors about unusable kubeconfigs and refused tokens do not contain their content.
func TestBrokenCredentials(t *testing.T) {
	hidden := secrets{}
	const token, password = "eyJsupersecret.token.signature", "hunter2hunter2hunter2"
	_, key, err := lab.SelfSigned("x")
	if err != nil {
		t.Fatal(err)
	}
	hidden.add("the token", token)
	hidden.add("the password", password)
	hidden.add("the key", string(key))
	s := clustertest.New(t)
	good, err := os.ReadFile(s.Kubeconfig())
	if err != nil {
		t.Fatal(err)
	}
	n := newMachine(t)
	user := func(what string) string { return strings.Replace(string(good), "user: {}", "user: {"+what+"}", 1) }
	block, _ := pem.Decode(key)
	for name, text := range map[string]string{
		"no YAML":             strings.Replace(user("token: "+token), "users:", "users: :", 1),
		"a quote":             user(`token: "` + token),
		"an alias":            user("token: *" + password),
		"a list":              user("token: [" + token + "]"),
		"a key that is none":  user("client-certificate-data: " + base64.StdEncoding.EncodeToString([]byte("x")) + ", client-key-data: " + base64.StdEncoding.EncodeToString(block.Bytes)),
		"a key not in base64": user("client-key-data: " + token + "!"),
		"a server with more":  strings.Replace(string(good), `server: "https://`, `server: "https://admin:`+password+`@`, 1),
		"a server that is no": strings.Replace(string(good), `server: "https://`, `server: "http://admin:`+password+`@192.0.2.1/`, 1),
	} {
		path := filepath.Join(n.dir, "kubeconfig")
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		said := agentWith(t, n, func(said string) bool { return said != "" }, "--kubeconfig", path)
		hidden.check(t, "a kubeconfig with "+name, said)
	}
	said := agentWith(t, n, func(said string) bool { return said != "" }, "--api-server", "https://admin:"+password+"@192.0.2.1:6443")
	hidden.check(t, "a flag", said)
	// The server refuses the token.
	s.PutJSON("nodes", allocatedNode)
	for _, k := range kube.Kinds() {
		s.Answer(k.Resource(), 401)
	}
	path := filepath.Join(n.dir, "kubeconfig")
	if err := os.WriteFile(path, []byte(user("token: "+token)), 0o600); err != nil {
		t.Fatal(err)
	}
	said = agentWith(t, n, func(said string) bool { return strings.Contains(said, "nothing is served yet") }, "--kubeconfig", path)
	hidden.check(t, "a token that is refused", said)
}

package e2e

import (
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"tapestry.dev/tapestry/kube"
	"tapestry.dev/tapestry/kube/manifests"
	"tapestry.dev/tapestry/test/lab"
	"tapestry.dev/tapestry/test/lab/rpc"
)

// TestHostile: a pod, strangers on the underlay and other users try what they must not do. The connections of others go
// on, and no agent ends.
func TestHostile(t *testing.T) {
	c := up(t, "hostile", baseYAML+podYAML("attacker", "node-1"))
	before := c.status(t)
	for _, test := range []struct {
		name string
		run  func(*testing.T, *cluster)
	}{
		{"junk on the WireGuard port", junkOnWireGuard},
		{"fuzzed frames", fuzzedFrames},
		{"spoofed frames", spoofedFrames},
		{"spoofed NodePort clients", spoofedNodePort},
		{"the agent's socket", othersDescriptors},
	} {
		t.Run(test.name, func(t *testing.T) {
			talking := c.talk(t, lab.Pod("client"),
				at(c.addr(t, "near", false), 9000), at(c.addr(t, "far", false), 9000), at(c.addr(t, "far", true), 9000), at(c.addr(t, "svc/far", false), 81))
			test.run(t, c)
			t.Logf("the longest silence was %s", talking.unharmed(t))
			for _, n := range before.Nodes {
				if now := nodeOf(c.status(t), n.Name); now.PID != n.PID || now.Restarts != 0 || now.Agent != "ready" {
					t.Errorf("the agent of %s did not live through it: %+v", n.Name, *now)
				}
			}
			// The attacker's own pod was not cut off either.
			for _, v6 := range []bool{false, true} {
				c.answered(t, lab.Pod("attacker"), "udp", at(c.addr(t, "near", v6), 9000), "near")
				c.answered(t, lab.Pod("attacker"), "tcp", at(c.addr(t, "far", v6), 9000), "far")
			}
		})
	}
}

// junkOnWireGuard sends thousands of datagrams from outside to both nodes. Some are handshakes in which only the
// sender's key is wrong.
func junkOnWireGuard(t *testing.T, c *cluster) {
	const count = 6000
	for i, node := range []string{"node-1", "node-2"} {
		sent := c.run(t, lab.Outside(), "wireguard-junk", at(c.addr(t, node, i == 1), 51820), strconv.Itoa(count), "7", publicKey(t, c, node))
		if sent != strconv.Itoa(count) {
			t.Errorf("only %s of %d datagrams were sent", sent, count)
		}
	}
}

// publicKey returns the public key that a node's agent published.
func publicKey(t *testing.T, c *cluster, node string) string {
	t.Helper()
	objs, err := manifests.Read(rpc.ObjectsDir(c.Dir))
	if err != nil {
		t.Fatal(err)
	}
	for _, n := range objs.Nodes {
		if n.Name == node && n.Annotations[kube.PublicKeyAnnotation] != "" {
			return strings.TrimSpace(n.Annotations[kube.PublicKeyAnnotation])
		}
	}
	t.Fatalf("node %s has published no key", node)
	return ""
}

// both returns the IPv4 and IPv6 addresses of the named things, separated by commas.
func both(t *testing.T, c *cluster, names ...string) string {
	t.Helper()
	var out []string
	for _, name := range names {
		out = append(out, c.addr(t, name, false).String(), c.addr(t, name, true).String())
	}
	return strings.Join(out, ",")
}

// watch captures at a pod. The known sources are all pods and Services, and the addresses that every node has in its
// pod ranges.
func watch(t *testing.T, c *cluster, pod string) *helper {
	t.Helper()
	known := both(t, c, "client", "near", "far", "attacker", "svc/near", "svc/far", "node-1", "node-2", "outside")
	for _, n := range c.status(t).Nodes {
		for _, cidr := range n.PodCIDRs {
			stack := cidr.Addr().Next()
			known += "," + stack.String() + "," + stack.Next().String()
		}
	}
	return c.begin(t, lab.Pod(pod), "capture", known)
}

// fuzzedFrames sends thousands of frames with all kinds of mistakes from a pod, also in the virtio-net header. Frames
// that reach other pods must come from the pod's own addresses.
func fuzzedFrames(t *testing.T, c *cluster) {
	victims := map[string]*helper{"near": watch(t, c, "near"), "far": watch(t, c, "far"), "client": watch(t, c, "client")}
	targets := both(t, c, "near", "far", "client", "svc/near", "svc/far", "node-1", "node-2", "outside") + ",10.96.0.10,10.244.1.1,10.244.2.1"
	a := decode[attack](t, c.run(t, lab.Pod("attacker"), "fuzz-frames", "5000", "11", both(t, c, "attacker"), targets))
	t.Logf("%d frames sent, %d refused by the kernel", a.Sent, a.Refused)
	if a.Sent < 2000 {
		t.Errorf("the kernel refused most frames: %+v", a)
	}
	// The pod sends this after all of the frames.
	for _, v6 := range []bool{false, true} {
		for name := range victims {
			c.answered(t, lab.Pod("attacker"), "udp", at(c.addr(t, name, v6), 9000), name)
		}
	}
	own := strings.Split(both(t, c, "attacker"), ",")
	for name, capture := range victims {
		arrived := 0
		for what, n := range decode[map[string]int](t, capture.end(t)) {
			// The mistake may be in the marker itself.
			if strings.HasSuffix(what, " from "+own[0]) || strings.HasSuffix(what, " from "+own[1]) {
				arrived += n
				continue
			}
			t.Errorf("%s got %d times: %s", name, n, what)
		}
		if arrived == 0 {
			t.Errorf("%s got none of the frames that are good after all: nothing was tested", name)
		}
	}
}

// spoofedFrames sends frames that claim to be another's: by source addresses, Ethernet addresses, and packets in
// packets.
func spoofedFrames(t *testing.T, c *cluster) {
	victims := []string{"near", "far"}
	var captures []*helper
	for _, v := range victims {
		captures = append(captures, watch(t, c, v))
	}
	mac := c.run(t, lab.Pod("client"), "mac")
	sources := both(t, c, "client", "far", "near", "node-1", "node-2", "svc/near", "outside") +
		",127.0.0.1,::1,0.0.0.0,255.255.255.255,224.0.0.1,10.244.1.1,10.244.1.2,10.244.2.1,fd00:10:244:1::1,fd00:10:244:2::1,8.8.8.8,2001:db8::1"
	a := decode[attack](t, c.run(t, lab.Pod("attacker"), "spoof-frames", both(t, c, "attacker"), both(t, c, victims...), sources, mac,
		"10.244.1.1,10.244.2.1,fd00:10:244:1::1,fd00:10:244:2::1"))
	if a.Sent < 100 || a.Refused > 0 {
		t.Errorf("the kernel refused frames that it should not know to be wrong: %+v", a)
	}
	own := strings.Split(both(t, c, "attacker"), ",")
	for i, v := range victims {
		for _, v6 := range []bool{false, true} {
			c.answered(t, lab.Pod("attacker"), "udp", at(c.addr(t, v, v6), 9000), v)
		}
		seen := decode[map[string]int](t, captures[i].end(t))
		for _, from := range own {
			if seen["honest from "+from] != 1 {
				t.Errorf("%s got %d honest frames from %s, want 1", v, seen["honest from "+from], from)
			}
			delete(seen, "honest from "+from)
		}
		for what, n := range seen {
			t.Errorf("%s got %d times: %s", v, n, what)
		}
	}
}

// spoofedNodePort gives addresses of pods and Services to the client outside. The node does not answer it, and no pod
// sees its packets.
func spoofedNodePort(t *testing.T, c *cluster) {
	captures := map[string]*helper{"near": watch(t, c, "near"), "far": watch(t, c, "far")}
	for _, v6 := range []bool{false, true} {
		targets := []string{at(c.addr(t, "node-1", v6), 30081), at(c.addr(t, "node-1", v6), 30082)}
		spoofed := []string{c.addr(t, "client", v6).String(), c.addr(t, "svc/near", v6).String()}
		for _, addr := range targets {
			for _, own := range spoofed {
				for network, answer := range decode[map[string]string](t, c.run(t, lab.Outside(), "ask-as", own, addr, "e2e:spoofed", "300ms")) {
					if answer != "none" {
						t.Errorf("%s client %s at %s was answered %q", network, own, addr, answer)
					}
				}
			}
			honest := c.addr(t, "outside", v6).String()
			for network, answer := range decode[map[string]string](t, c.run(t, lab.Outside(), "ask-as", honest, addr, "e2e:honest", "5s")) {
				if !strings.Contains(answer, "e2e:honest") || !strings.Contains(answer, honest) {
					t.Errorf("%s client %s at %s was answered %q", network, honest, addr, answer)
				}
			}
		}
	}
	for name, capture := range captures {
		honest := 0
		for what, n := range decode[map[string]int](t, capture.end(t)) {
			if strings.HasPrefix(what, "honest from ") {
				honest += n
			} else {
				t.Errorf("%s got %d times: %s", name, n, what)
			}
		}
		if honest == 0 {
			t.Errorf("%s saw nothing of the honest client: nothing was tested", name)
		}
	}
}

// othersDescriptors makes another user send a descriptor to the agent's socket.
func othersDescriptors(t *testing.T, c *cluster) {
	dir := rpc.NodeDir(c.Dir, "node-1")
	socket := filepath.Join(dir, "agent.sock")
	for path, want := range map[string]os.FileMode{socket: 0o600, filepath.Join(dir, "api.sock"): 0o600, filepath.Join(dir, "keeper.sock"): 0o600, c.Dir: 0o700, filepath.Join(dir, "wireguard.key"): 0o600} {
		info, err := os.Stat(path)
		if err != nil || info.Mode().Perm() != want {
			t.Errorf("%s: mode %v, %v; want %v", path, info.Mode(), err, want)
		}
	}
	if os.Geteuid() != 0 {
		// An ordinary user has only one user ID, and the namespaces of its lab have no other. The kernel does not let a
		// process become another user there.
		_, stderr, code, err := c.Output(c.ctx, lab.Node("node-1"), self(t), "e2e-helper", "attach-as", "65534", socket)
		if err != nil || code == 0 || !strings.Contains(stderr, "invalid argument") {
			t.Errorf("a process became another user: exit status %d, %v: %s", code, err, stderr)
		}
		return
	}
	const nobody = "65534"
	answer := c.run(t, lab.Node("node-1"), "attach-as", nobody, socket)
	contains(t, answer, "the agent of this node cannot be reached", "permission denied")
	// If the file modes let the other user through, the agent still asks the kernel who it is.
	for path := dir; ; path = filepath.Dir(path) {
		if info, err := os.Stat(path); err != nil {
			t.Fatal(err)
		} else if info.Mode().Perm()&0o005 == 0 {
			if err := os.Chmod(path, info.Mode().Perm()|0o055); err != nil {
				t.Fatal(err)
			}
			defer os.Chmod(path, info.Mode().Perm())
		}
		if path == "/" {
			break
		}
	}
	if err := os.Chmod(socket, 0o666); err != nil {
		t.Fatal(err)
	}
	defer os.Chmod(socket, 0o600)
	answer = c.run(t, lab.Node("node-1"), "attach-as", nobody, socket)
	contains(t, answer, "user "+nobody+" may not use", "only user [0] may")
	// The agent accepts the lab's own user, and says what is wrong with the descriptor.
	answer = c.run(t, lab.Node("node-1"), "attach-as", "0", socket)
	contains(t, answer, "attach pod default/intruder")
	if strings.Contains(answer, "may not use") {
		t.Errorf("the agent's own user was refused: %s", answer)
	}
}

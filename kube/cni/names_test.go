package cni

import (
	"strings"
	"testing"
)

func TestCheckNames(t *testing.T) {
	good := Pod{Namespace: "default", Name: "web-0.x", UID: "3b5e", ContainerID: "Ab_1.2-3", IfName: "eth0", Network: "net"}
	if err := good.CheckNames(); err != nil {
		t.Error(err)
	}
	if err := (&Pod{Namespace: WithoutObject + "net", Name: "Ab_1"}).CheckNames(); err != nil {
		t.Errorf("a container without a Pod object: %v", err)
	}
	for _, bad := range []string{".", "..", "../x", "a/b", "a b", "a\nb", "a\x00", "\x1b[2J", "-a", "ä", "a\xff", "a:b", strings.Repeat("a", 254)} {
		for field, p := range map[string]*Pod{
			"namespace": {Namespace: bad, Name: "n"}, "name": {Namespace: "d", Name: bad},
			"uid": {Namespace: "d", Name: "n", UID: bad}, "containerID": {Namespace: "d", Name: "n", ContainerID: bad},
			"network": {Namespace: "d", Name: "n", Network: bad}, "ifname": {Namespace: "d", Name: "n", IfName: bad},
		} {
			if field == "ifname" && (bad == "-a" || bad == "ä") { // the kernel accepts these
				continue
			}
			if err := p.CheckNames(); err == nil || !strings.Contains(err.Error(), field+": ") || strings.ContainsAny(err.Error(), "\x00\x1b") {
				t.Errorf("%s %q: %v", field, bad, err)
			}
		}
	}
}

// The agent checks names itself: other programs than the plugin may use the socket.
func TestNamesOnTheSocket(t *testing.T) {
	a := newAgent()
	c := start(t, a, Options{})
	// Joined by a slash, both would be the same.
	for _, tc := range [][2]string{{"default/web", "x"}, {"default", "web/x"}} {
		r, w := pipe(t)
		p := pod()
		p.Namespace, p.Name = tc[0], tc[1]
		if err := c.Add(t.Context(), p, w); err == nil || !strings.Contains(err.Error(), "is no name") {
			t.Errorf("%q: %v", tc, err)
		}
		w.Close()
		closed(t, r)
		if err := c.Del(t.Context(), p); err != nil {
			t.Errorf("what is there already is let go: %v", err)
		}
	}
	if n := a.len(); n != 0 {
		t.Errorf("%d pods were attached", n)
	}
}

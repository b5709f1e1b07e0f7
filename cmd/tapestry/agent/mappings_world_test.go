package agent

import (
	"fmt"
	"io"
	"net"
	"strings"
	"testing"
	"time"

	"tapestry.dev/tapestry/test/await"
)

// serves answers every connection to the sandbox's port with the container's name, until the test ends.
func (s *sandbox) serves(port int) {
	s.t.Helper()
	var l net.Listener
	if err := s.ns.Do(func() (err error) {
		l, err = net.Listen("tcp", fmt.Sprint(":", port))
		return err
	}); err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(func() { l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			_, _ = io.WriteString(c, s.container)
			c.Close()
		}
	}()
}

// ask returns the answer at an address of the node.
func ask(addr string) (string, error) {
	c, err := net.DialTimeout("tcp", addr, await.Patience)
	if err != nil {
		return "", err
	}
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(await.Patience))
	answer, err := io.ReadAll(c)
	return string(answer), err
}

// A port that a runtime asks for leads to the pod while the pod is attached, also after the agent restarts.
func TestPortMappings(t *testing.T) {
	n := newMachine(t)
	n.start()
	n.ready()
	s := n.sandbox("c1", "web")
	s.extra = `,"runtimeConfig":{"portMappings":[{"hostPort":18080,"containerPort":8080,"protocol":"tcp"}]}`
	open := func() {
		t.Helper()
		for _, addr := range []string{"127.0.0.1:18080", "172.31.0.1:18080"} {
			if got, err := ask(addr); got != "c1" || err != nil {
				t.Errorf("%s: %q, %v", addr, got, err)
			}
		}
	}
	closed := func() {
		t.Helper()
		if got, err := ask("172.31.0.1:18080"); err == nil {
			t.Errorf("somebody answers %q", got)
		}
	}
	s.works("ADD")
	s.serves(8080)
	open()
	s.works("ADD") // once more
	open()
	n.kill()
	closed()
	n.start()
	n.ready()
	open()
	// The Pod object names the same port as the runtime.
	n.manifest("pods.yaml", fmt.Sprintf(`
apiVersion: v1
kind: Pod
metadata: {name: web, namespace: default}
spec: {nodeName: n1, containers: [{name: c, image: i, ports: [{containerPort: 8080, hostPort: 18080}]}]}
status: {phase: Running, podIP: %[1]s, podIPs: [{ip: %[1]s}]}
---
apiVersion: v1
kind: Pod
metadata: {name: wrong, namespace: default}
spec: {nodeName: n1, containers: [{name: c, image: i, ports: [{containerPort: 8080, hostPort: 70000}]}]}
`, s.address()))
	n.until("the objects are in force", func() bool {
		return strings.Contains(n.problems(), "70000")
	})
	open()
	if got := n.problems(); strings.Contains(got, "18080") {
		t.Error(got)
	}
	n.manifest("pods.yaml", "")
	n.until("the objects are gone", func() bool {
		return n.problems() == ""
	})
	open()
	s.works("DEL")
	closed()
	n.has(0, 0)
}

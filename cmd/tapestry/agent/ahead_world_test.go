package agent

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"syscall"
	"testing"
	"time"

	"tapestry.dev/tapestry/test/await"
)

// TestTakeOver: an agent that waits for another one to end says when it is ready, and takes over when that one is told
// to end. Meanwhile lookups and connections to a NodePort are made all the time: none is refused. Connections
// that the agent before had accepted already may be cut.
func TestTakeOver(t *testing.T) {
	n := newMachine(t)
	file := func(i int) string { return filepath.Join(n.dir, fmt.Sprint("prepared-", i)) }
	n.takeOver = file(0)
	n.start()
	n.ready()
	web, client := n.sandbox("c1", "web"), n.sandbox("c2", "client")
	web.works("ADD")
	web.serves(8080)
	client.works("ADD")
	n.manifest("web.yaml", fmt.Sprintf(`
apiVersion: v1
kind: Service
metadata: {name: web}
spec: {type: NodePort, clusterIP: 10.96.0.7, ports: [{port: 80, targetPort: 8080, nodePort: 30080}]}
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: web-1, labels: {kubernetes.io/service-name: web}}
addressType: IPv4
ports: [{port: 8080, protocol: TCP}]
endpoints: [{addresses: [%s], conditions: {ready: true}, nodeName: n1}]
`, web.address()))
	const name = "web.default.svc.cluster.local:80"
	n.until("the NodePort is open", func() bool { got, err := ask("172.31.0.1:30080"); return got == "c1" && err == nil })
	n.until("the Service has a name", func() bool { got, err := client.asks(name); return got == "c1" && err == nil })

	ctx, stop := context.WithCancel(t.Context())
	var asking sync.WaitGroup
	var cut, asked int
	asking.Go(func() {
		for ; ctx.Err() == nil; asked++ {
			switch got, err := ask("172.31.0.1:30080"); {
			case errors.Is(err, syscall.ECONNREFUSED):
				t.Error("a connection to the NodePort is refused")
			case err != nil || got != "c1":
				cut++
			}
		}
	})
	var slowest time.Duration
	asking.Go(func() {
		for ctx.Err() == nil {
			began := time.Now()
			if got, err := client.asks(name); err != nil || got != "c1" {
				t.Errorf("a pod asks the Service by its name: %q, %v", got, err)
			}
			slowest = max(slowest, time.Since(began))
		}
	})
	for i := range 3 {
		before := n.agent
		was, err := n.api.Node(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		n.mu.Lock()
		n.agent = nil
		n.mu.Unlock()
		n.takeOver = file(i + 1)
		n.start()
		n.until("the next agent says that it is ready", func() bool { _, err := os.Stat(n.takeOver); return err == nil })
		if now, err := n.api.Node(t.Context()); err != nil || !now.Started.Equal(was.Started) {
			t.Errorf("the agent of before does not have the node any more: %v", err)
		}
		if err := before.Process.Signal(syscall.SIGTERM); err != nil {
			t.Fatal(err)
		}
		ended := time.Now()
		if err := before.Wait(); err != nil {
			t.Errorf("the agent of before ends with %v", err)
		}
		took := time.Since(ended)
		n.until("the next agent has the node", func() bool {
			now, err := n.api.Node(t.Context())
			return err == nil && now.Started.After(was.Started) && len(now.Missing) == 0
		})
		t.Logf("the agent of before ended after %v", took.Round(time.Millisecond))
		n.until("the NodePort answers", func() bool { got, err := ask("172.31.0.1:30080"); return got == "c1" && err == nil })
	}
	stop()
	asking.Wait()
	t.Logf("%d connections to the NodePort, %d cut; the slowest lookup and connection of a pod took %v", asked, cut, slowest.Round(time.Millisecond))
	// A NodePort that goes while there is no agent is closed by the next one.
	n.kill()
	if err := os.Remove(filepath.Join(n.dir, "manifests", "web.yaml")); err != nil {
		t.Fatal(err)
	}
	n.start()
	await.Until(t, "the NodePort is refused", func() bool { _, err := ask("172.31.0.1:30080"); return errors.Is(err, syscall.ECONNREFUSED) })
}

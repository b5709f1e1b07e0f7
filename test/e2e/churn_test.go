package e2e

import (
	"context"
	"fmt"
	"net/netip"
	"os"
	"sync"
	"testing"
	"time"

	"tapestry.dev/tapestry/test/lab"
)

const (
	// churnPlaces is how many Services of a churn there are at most. Each time, churnStep of them change.
	churnPlaces = 40
	churnStep   = 10
	churnPause  = 100 * time.Millisecond
)

// churn makes, changes and deletes Services and their EndpointSlices, a hundred times a second. They are objects of a
// file beside that of the lab, so the lab gives them addresses, and each agent has to apply them.
type churn struct {
	file string
	pods [2]netip.Addr // of the endpoints

	step    int
	present [churnPlaces]bool
	last    [churnPlaces]int // the step of the last change
	changes int

	stop context.CancelFunc
	done sync.WaitGroup
}

// newChurn makes the file, which the lab has to be told of, without Services.
func newChurn(t *testing.T) *churn {
	t.Helper()
	c := &churn{file: t.TempDir() + "/churn.yaml"}
	if err := c.write(); err != nil {
		t.Fatal(err)
	}
	return c
}

// begin changes Services until end, which returns how many changes there were.
func (c *churn) begin(t *testing.T, near, far netip.Addr) {
	c.pods = [2]netip.Addr{near, far}
	ctx, stop := context.WithCancel(t.Context())
	c.stop = stop
	c.done.Go(func() {
		tick := time.NewTicker(churnPause)
		defer tick.Stop()
		for {
			select {
			case <-tick.C:
			case <-ctx.Done():
				return
			}
			c.change()
			if err := c.write(); err != nil {
				t.Error(err)
				return
			}
		}
	})
}

func (c *churn) end() (changes int) {
	c.stop()
	c.done.Wait()
	return c.changes
}

// change makes, changes or deletes churnStep of the Services.
func (c *churn) change() {
	c.step++
	for n := range churnStep {
		i := (c.step*churnStep + n) % churnPlaces
		c.present[i] = !c.present[i] || (c.step/4+i)%3 != 0
		c.last[i] = c.step
		c.changes++
	}
}

func (c *churn) write() error {
	text := "apiVersion: v1\nkind: Namespace\nmetadata: {name: churn}\n"
	for i, present := range c.present {
		if present {
			text += churnYAML(fmt.Sprintf("churn-%d", i), 1000+c.last[i]%1000, c.pods[c.last[i]%2])
		}
	}
	whole := c.file + ".new"
	if err := os.WriteFile(whole, []byte(text), 0o600); err != nil {
		return err
	}
	return os.Rename(whole, c.file)
}

func churnYAML(name string, port int, endpoint netip.Addr) string {
	return fmt.Sprintf(`---
apiVersion: v1
kind: Service
metadata: {name: %[1]s, namespace: churn}
spec: {ports: [{name: line, port: %[2]d, targetPort: 9000}]}
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: %[1]s, namespace: churn, labels: {kubernetes.io/service-name: %[1]s}}
addressType: IPv4
endpoints: [{addresses: [%[3]s]}]
ports: [{name: line, port: 9000, protocol: TCP}]
`, name, port, endpoint)
}

// inForce adds one more Service, and waits until a pod reaches it: the agent has followed to the end.
func (c *churn) inForce(t *testing.T, l *cluster) {
	t.Helper()
	f, err := os.OpenFile(c.file, os.O_APPEND|os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	_, err = f.WriteString(churnYAML("last", 999, c.pods[1]))
	if err == nil {
		err = f.Close()
	}
	if err != nil {
		t.Fatal(err)
	}
	var addr netip.Addr
	l.until(t, "the last Service has an address", func(st *lab.Status) bool {
		for _, s := range st.Services {
			if s.Namespace == "churn" && s.Name == "last" && len(s.ClusterIPs) > 0 {
				addr = netip.MustParseAddr(s.ClusterIPs[0])
			}
		}
		return addr.IsValid()
	})
	l.reaches(t, lab.Pod("client-0"), "tcp", at(addr, 999), "far")
}

// snapshots returns how many snapshots of the cluster a node's agent has applied since it started.
func (c *cluster) snapshots(t *testing.T, node string) (n uint64) {
	t.Helper()
	for _, v := range c.counters(t, node).Find("tapestry_sync_duration_seconds").Values {
		n += v.Count
	}
	return n
}

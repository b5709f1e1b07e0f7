// Package steps shows what Tapestry can do, one thing at a time, on a real cluster of two nodes. The demo shows the
// steps and the end-to-end tests assert them with the same code.
package steps

import (
	"context"
	_ "embed"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"tapestry.dev/tapestry/test/lab"
)

//go:embed cluster.yaml
var clusterYAML string

// Step is one thing that is shown.
type Step struct {
	// Name is short and stable. Title is one line for people.
	Name, Title string
	// Run carries the step out and returns what was seen. The error says what went wrong.
	Run func(context.Context, *Cluster) (detail string, err error)
}

// All returns the steps in order.
func All() []Step {
	return []Step{
		{"pod-to-pod", "pod to pod on one node, the server sees the client's own address", podToPod},
		{"across-nodes", "pod to pod across nodes, nothing but WireGuard on the wire", acrossNodes},
		{"stock-wireguard", "a stock wireguard-go device talks to our agent", stockWireGuard},
		{"cluster-ip", "ClusterIP over TCP and UDP, spread over both nodes", clusterIP},
		{"hairpin", "a pod reaches itself through its Service", hairpin},
		{"one-port", "one client port to three Services over one backend at once", onePort},
		{"refused", "a Service without endpoints refuses at once", refused},
		{"failover", "a backend dies or turns unready: new connections go elsewhere", failover},
		{"dns", "cluster DNS, and other names from outside", clusterDNS},
		{"egress", "from a pod to the outside: TCP, UDP, ping", egress},
		{"restart", "an agent is killed under traffic, and no connection breaks", restart},
		{"node-port", "NodePort on every node, the pod sees the outside client's own address", nodePort},
		{"load-balancer", "a LoadBalancer Service gets addresses of nodes, without any right", loadBalancer},
		{"ingress", "Ingress over HTTP and HTTPS: hosts, paths, SNI, WebSocket, HTTP/2", ingressStep},
		{"path-mtu", "a smaller underlay is answered with ICMP, not with silence", pathMTU},
		{"host-tap", "a process on the node reaches pods and Services, pods reach nodes", hostTAP},
		{"no-rules", "no iptables or nftables rule exists in any namespace", noRules},
	}
}

// Cluster is the lab in which the steps run.
type Cluster struct {
	*lab.Client
	// file is the lab's file. A step changes the cluster by writing this file.
	file string
	exe  string
	ips  map[string]pair // addresses of pods, of ClusterIPs as "svc/name", of nodes
}

// Options are the options of Up.
type Options struct {
	Name string // of the lab
	Dir  string // folder for the lab's file
	// Product is the executable tapestry; "" is the executable that product.Find finds.
	Product string
	// Detach lets the lab live on when this process ends.
	Detach bool
}

// Up brings up the steps' cluster and waits until it is ready.
func Up(ctx context.Context, o Options) (*Cluster, error) {
	secret, err := lab.TLSSecret("shop-tls", "shop.example")
	if err != nil {
		return nil, err
	}
	c := &Cluster{file: filepath.Join(o.Dir, "cluster.yaml"), ips: map[string]pair{}}
	if c.exe, err = os.Executable(); err != nil {
		return nil, err
	}
	if err := os.WriteFile(c.file, []byte(clusterYAML+secret), 0o600); err != nil {
		return nil, err
	}
	if c.Client, err = lab.Up(ctx, lab.Options{Name: o.Name, Files: []string{c.file}, Product: o.Product, Detach: o.Detach}); err != nil {
		return nil, err
	}
	if err := c.Wait(ctx, 20*time.Second); err != nil {
		return nil, fmt.Errorf("%w (and taking it down: %v)", err, c.Down(context.WithoutCancel(ctx)))
	}
	if err := c.learn(ctx); err != nil {
		return nil, err
	}
	return c, nil
}

// File returns the path of the cluster's YAML file.
func (c *Cluster) File() string { return c.file }

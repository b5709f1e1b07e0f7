package lab

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
)

// A Lab is a cluster with its files. At most one can be up for each Work.
type Lab struct {
	// Work is the directory of all its files: caches, images, the state of the cluster, logs. It is absolute.
	Work string
	// Bin has the programs that test/kubernetes/build makes. It is absolute.
	Bin string
}

// Options are of one cluster.
type Options struct {
	// Nodes is how many there are.
	Nodes int
	// DualStack gives nodes, pods and Services addresses of both families.
	DualStack bool
	// Forward makes the nodes' kernels forward packets, as most CNI plugins need it.
	Forward bool
	// UserNS names the node that is inside a user namespace, as a rootless one is; empty: none is.
	UserNS string
}

// State is what is known of a lab that is up.
type State struct {
	// Outside is the process that holds the namespace of what is no node; ControlPlane is that of the control plane.
	Outside, ControlPlane int
	Nodes                 []Node
}

// Node is one node of a lab.
type Node struct {
	Name  string
	Addrs []string
	// PID is its first process.
	PID int
	// UserNS says that its namespaces belong to a user namespace of its own.
	UserNS bool
}

// Addresses and ranges of every lab.
const (
	// ClusterDNS is where pods ask.
	ClusterDNS = "10.96.0.10"
	// Outside is the address of the host outside.
	Outside = "172.30.0.1"
	// APIPort is the API server's on the first node.
	APIPort = 6443

	serviceCIDR, serviceCIDR6 = "10.96.0.0/12", "fd00:10:96::/112"
	podCIDR, podCIDR6         = "10.244.0.0/16", "fd00:10:244::/56"
	gateway6                  = "fd00:172:30::1"
)

// nodeAddrs are those of node i, counted from 1.
func nodeAddrs(i int, dual bool) []string {
	addrs := []string{fmt.Sprintf("172.30.0.%d", 10+i)}
	if dual {
		addrs = append(addrs, fmt.Sprintf("fd00:172:30::%x", 0x10+i))
	}
	return addrs
}

// Dir is what belongs to the cluster that is up, or was the last one to be.
func (l Lab) Dir() string { return filepath.Join(l.Work, "cluster") }

// Kubeconfig is the administrator's. Its address is that of the first node's own loopback.
func (l Lab) Kubeconfig() string { return filepath.Join(l.controlPlaneDir(), "admin.kubeconfig") }

// Cache is the directory of the images' layers.
func (l Lab) Cache() string { return filepath.Join(l.Work, "cache") }

// Images is the directory of the packed images.
func (l Lab) Images() string { return filepath.Join(l.Work, "images") }

// Kubectl is the path of that program.
func (l Lab) Kubectl() string { return filepath.Join(l.Bin, "kubectl") }

func (l Lab) controlPlaneDir() string { return filepath.Join(l.Dir(), "controlplane") }

func (l Lab) nodeDir(name string) string { return filepath.Join(l.Dir(), name) }

func (l Lab) stateFile() string { return filepath.Join(l.Dir(), "state.json") }

// cgroup is that of the whole lab, without a slash at its beginning.
func (l Lab) cgroup() string { return strings.ReplaceAll(filepath.Base(l.Work), ".", "-") }

// State reads that of the lab, which has to be up.
func (l Lab) State() (State, error) {
	var s State
	text, err := os.ReadFile(l.stateFile())
	if errors.Is(err, fs.ErrNotExist) {
		return s, fmt.Errorf("no cluster is up in %s: bring one up with \"klab up\"", l.Work)
	}
	if err != nil {
		return s, err
	}
	if err := json.Unmarshal(text, &s); err != nil {
		return s, fmt.Errorf("%s: %w", l.stateFile(), err)
	}
	return s, nil
}

func (l Lab) write(s State) error {
	text, err := json.MarshalIndent(s, "", "  ")
	if err != nil {
		return err
	}
	return os.WriteFile(l.stateFile(), text, 0o644)
}

// PID gives the process whose namespaces are those of the node, or of the host outside.
func (s State) PID(name string) (int, error) {
	names := []string{"outside"}
	if name == "outside" {
		return s.Outside, nil
	}
	for _, n := range s.Nodes {
		if n.Name == name {
			return n.PID, nil
		}
		names = append(names, n.Name)
	}
	return 0, fmt.Errorf("there is no node %s: there are %s", name, strings.Join(names, ", "))
}

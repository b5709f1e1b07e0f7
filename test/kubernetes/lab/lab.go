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
	// Work is the directory of all its files: caches, images, the state of the cluster, logs. The path is absolute.
	Work string
	// Bin has the programs that test/kubernetes/build makes. The path is absolute.
	Bin string
}

// Options are the options of one cluster.
type Options struct {
	// Nodes is the number of nodes.
	Nodes int
	// DualStack gives nodes, pods and Services addresses of both families.
	DualStack bool
	// Forward makes the nodes' kernels forward packets. Most CNI plugins need that.
	Forward bool
	// UserNS names the node that is inside a user namespace, like a rootless node; "" is none.
	UserNS string
}

// State is what is known about a lab that is up.
type State struct {
	// Outside is the process that holds the namespace of the host outside. ControlPlane is the process of the control
	// plane.
	Outside, ControlPlane int
	Nodes                 []Node
}

// Node is one node of a lab.
type Node struct {
	Name  string
	Addrs []string
	// PID is the node's first process.
	PID int
	// UserNS says that the node's namespaces belong to a user namespace of its own.
	UserNS bool
}

// Addresses and ranges of every lab.
const (
	// ClusterDNS is the address of the name server for pods.
	ClusterDNS = "10.96.0.10"
	// Outside is the address of the host outside.
	Outside = "172.30.0.1"
	// APIPort is the API server's port on the first node.
	APIPort = 6443

	serviceCIDR, serviceCIDR6 = "10.96.0.0/12", "fd00:10:96::/112"
	podCIDR, podCIDR6         = "10.244.0.0/16", "fd00:10:244::/56"
	gateway6                  = "fd00:172:30::1"
)

// nodeAddrs returns the addresses of node i, counted from 1.
func nodeAddrs(i int, dual bool) []string {
	addrs := []string{fmt.Sprintf("172.30.0.%d", 10+i)}
	if dual {
		addrs = append(addrs, fmt.Sprintf("fd00:172:30::%x", 0x10+i))
	}
	return addrs
}

// Dir is the directory of the cluster that is up, or was up last.
func (l Lab) Dir() string { return filepath.Join(l.Work, "cluster") }

// Kubeconfig is the administrator's kubeconfig. The address in it is on the first node's loopback.
func (l Lab) Kubeconfig() string { return filepath.Join(l.controlPlaneDir(), "admin.kubeconfig") }

// Cache is the directory of the images' layers.
func (l Lab) Cache() string { return filepath.Join(l.Work, "cache") }

// Images is the directory of the packed images.
func (l Lab) Images() string { return filepath.Join(l.Work, "images") }

// Kubectl is the path of kubectl.
func (l Lab) Kubectl() string { return filepath.Join(l.Bin, "kubectl") }

func (l Lab) controlPlaneDir() string { return filepath.Join(l.Dir(), "controlplane") }

func (l Lab) nodeDir(name string) string { return filepath.Join(l.Dir(), name) }

func (l Lab) stateFile() string { return filepath.Join(l.Dir(), "state.json") }

// cgroup is the name of the lab's cgroup, without a leading slash.
func (l Lab) cgroup() string { return strings.ReplaceAll(filepath.Base(l.Work), ".", "-") }

// State reads the state of the lab, which must be up.
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

// PID returns the process whose namespaces are those of the node, or of the host outside.
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

// Package node is one node of a cluster on this machine: the first process of its namespaces, which runs containerd and
// kubelet in them.
//
// Those two have many paths built in. A node has a mount namespace of its own, where directories of the node lie over
// these paths, and a process namespace of its own, so that the end of its first process is the end of everything in
// it: kubelet, containerd, shims and containers.
package node

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"text/template"
)

// Config says what a node is.
type Config struct {
	Name string
	// Addrs are those of the node, one or one of each family.
	Addrs []string
	// Dir has what is of this cluster's life only, and the logs. Images has what containerd keeps from one to the next.
	Dir, Images string
	// Bin has kubelet.
	Bin string
	// ControlPlane is the directory of the control plane. Kubelet is started when it is ready.
	ControlPlane string
	// Cgroup is that of the node, below which its pods have theirs: /name/node-1.
	Cgroup string
	// Archives are the images which the node shall have.
	Archives []string
	// ClusterDNS is the address at which pods ask. Upstream is where the node itself asks.
	ClusterDNS, Upstream string
	// Forward makes the node's kernel forward packets between interfaces, and kubelet make its iptables chains.
	Forward bool
	// UserNS says that the node is inside a user namespace of 65,536 ids, whose root owns Dir, Images and the
	// directories of Cgroup.
	UserNS bool
}

// CNIBin is the directory, empty at first, of CNI plugins: a bind mount of the same name in the node's Dir.
const CNIBin = "/opt/cni/bin"

// CNIConf is the directory of CNI's configuration.
const CNIConf = "/etc/cni/net.d"

// Socket is containerd's.
const Socket = "/run/containerd/containerd.sock"

// own are the paths that each node has for itself. They exist on the machine while a lab is up.
var own = []string{
	CNIBin, CNIConf, "/var/lib/cni", "/var/lib/containerd", "/var/lib/kubelet", "/var/lib/tapestry", "/var/log/containers", "/var/log/pods",
}

// MakeMountPoints makes the directories that nodes mount over, and gives those that were not there before, deepest
// first.
func MakeMountPoints() ([]string, error) {
	var made []string
	for _, path := range own {
		for dir := path; dir != "/"; dir = filepath.Dir(dir) {
			if _, err := os.Stat(dir); err == nil {
				break
			}
			made = append(made, dir)
		}
		if err := os.MkdirAll(path, 0o755); err != nil {
			return made, err
		}
	}
	return made, nil
}

// source is what lies over the path on this node.
func (c Config) source(path string) string {
	if path == "/var/lib/containerd" {
		return c.Images
	}
	return filepath.Join(c.Dir, strings.ReplaceAll(strings.TrimPrefix(path, "/"), "/", "-"))
}

func (c Config) file(name string) string { return filepath.Join(c.Dir, name) }

// containerdConfig: restrict_oom_score_adj lets pods start where we lack CAP_SYS_RESOURCE.
var containerdConfig = template.Must(template.New("containerd").Parse(`version = 2
root = "/var/lib/containerd"
state = "/run/containerd"
disabled_plugins = ["io.containerd.snapshotter.v1.aufs", "io.containerd.snapshotter.v1.btrfs", "io.containerd.snapshotter.v1.devmapper", "io.containerd.snapshotter.v1.zfs"]
[grpc]
  address = "{{.Socket}}"
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "{{.Pause}}"
  disable_apparmor = true
  restrict_oom_score_adj = true
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "{{.CNIBin}}"
    conf_dir = "{{.CNIConf}}"
  [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
    runtime_type = "io.containerd.runc.v2"
    [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc.options]
      SystemdCgroup = false
`))

// kubeletConfig: a small machine is no reason to evict, and a lab's images are not to be collected.
// makeIPTablesUtilChains is for networks that translate in iptables: its KUBE-FIREWALL drops what processes of the
// node send from the node's address to 127.0.0.1, unless iptables has translated it, and so keeps them from a host
// port of that address which a process serves.
var kubeletConfig = template.Must(template.New("kubelet").Parse(`apiVersion: kubelet.config.k8s.io/v1beta1
kind: KubeletConfiguration
authentication: {anonymous: {enabled: false}, webhook: {enabled: true}, x509: {clientCAFile: {{.PKI}}/ca.crt}}
authorization: {mode: Webhook}
tlsCertFile: {{.PKI}}/kubelet-{{.Name}}-serving.crt
tlsPrivateKeyFile: {{.PKI}}/kubelet-{{.Name}}-serving.key
clusterDNS: ["{{.ClusterDNS}}"]
clusterDomain: cluster.local
resolvConf: {{.ResolvConf}}
containerRuntimeEndpoint: unix://{{.Socket}}
cgroupDriver: cgroupfs
cgroupRoot: {{.Cgroup}}
failCgroupV1: false
failSwapOn: false
imageGCHighThresholdPercent: 100
evictionHard: {memory.available: 100Mi, nodefs.available: 0%, imagefs.available: 0%, nodefs.inodesFree: 0%}
makeIPTablesUtilChains: {{.Forward}}
{{if .UserNS}}featureGates: {KubeletInUserNamespace: true}
{{end}}maxPods: 200
syncFrequency: 10s
`))

// writeConfigs writes what containerd and kubelet read.
func (c Config) writeConfigs(pause string) error {
	values := struct {
		Config
		PKI, Socket, CNIBin, CNIConf, Pause, ResolvConf string
	}{c, filepath.Join(c.ControlPlane, "pki"), Socket, CNIBin, CNIConf, pause, c.file("resolv.conf")}
	for name, t := range map[string]*template.Template{"containerd.toml": containerdConfig, "kubelet.yaml": kubeletConfig} {
		var b strings.Builder
		if err := t.Execute(&b, values); err != nil {
			return err
		}
		if err := os.WriteFile(c.file(name), []byte(b.String()), 0o644); err != nil {
			return err
		}
	}
	return os.WriteFile(values.ResolvConf, fmt.Appendf(nil, "nameserver %s\noptions timeout:1\n", c.Upstream), 0o644)
}

// Package node is one node of a cluster on this machine: the first process of its namespaces, which runs containerd and
// kubelet in them.
//
// Many paths are built into these two programs. A node therefore has a mount namespace of its own, in which directories
// of the node lie over these paths. It also has a PID namespace of its own, so that everything in it (kubelet,
// containerd, shims and containers) ends with its first process.
package node

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"text/template"
)

// Config describes a node.
type Config struct {
	Name string
	// Addrs are the node's addresses, one or one of each family.
	Addrs []string
	// Dir has what lasts as long as this cluster, and the logs. Images has what containerd keeps for the next cluster.
	Dir, Images string
	// Bin has the program kubelet.
	Bin string
	// ControlPlane is the directory of the control plane. Kubelet is started when it is ready.
	ControlPlane string
	// Cgroup is the node's cgroup, such as /name/node-1. The cgroups of its pods are below it.
	Cgroup string
	// Archives are the images that the node must have.
	Archives []string
	// ClusterDNS is the name server of pods. Upstream is the name server of the node itself.
	ClusterDNS, Upstream string
	// Forward makes the node's kernel forward packets between interfaces, and makes kubelet add its iptables chains.
	Forward bool
	// UserNS says that the node is inside a user namespace of 65,536 IDs, whose root owns Dir, Images and the
	// directories of Cgroup.
	UserNS bool
}

// CNIBin is the directory of CNI plugins, which is empty at first. It is a bind mount of the same directory in the
// node's Dir.
const CNIBin = "/opt/cni/bin"

// CNIConf is the directory of CNI's configuration.
const CNIConf = "/etc/cni/net.d"

// Socket is containerd's socket.
const Socket = "/run/containerd/containerd.sock"

// own lists the paths that each node has for itself. They exist on the machine while a lab is up.
var own = []string{
	CNIBin, CNIConf, "/var/lib/cni", "/var/lib/containerd", "/var/lib/kubelet", "/var/lib/tapestry", "/var/log/containers", "/var/log/pods",
}

// MakeMountPoints makes the directories that nodes mount over. It returns those that did not exist before, deepest
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

// source returns the directory that lies over the path on this node.
func (c Config) source(path string) string {
	if path == "/var/lib/containerd" {
		return c.Images
	}
	return filepath.Join(c.Dir, strings.ReplaceAll(strings.TrimPrefix(path, "/"), "/", "-"))
}

func (c Config) file(name string) string { return filepath.Join(c.Dir, name) }

// containerdConfig is containerd's configuration. restrict_oom_score_adj lets pods start where this process lacks
// CAP_SYS_RESOURCE.
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

// kubeletConfig is kubelet's configuration. It turns off eviction, since the machine may be small, and image
// collection, since the lab needs its images. makeIPTablesUtilChains is for networks that translate in iptables. Its
// chain KUBE-FIREWALL drops packets from the node's address to 127.0.0.1 that iptables has not translated. Processes of
// the node would then not reach a host port of 127.0.0.1 that a process serves.
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

// writeConfigs writes the files that containerd and kubelet read.
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

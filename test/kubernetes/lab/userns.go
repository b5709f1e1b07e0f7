package lab

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"
)

// A node inside a user namespace has the IDs from firstID on, which nobody has on the machine. The first one is its
// root.
const firstID, ids = 100000, 65536

// Names returns the names of the nodes.
func (o Options) Names() []string {
	var names []string
	for i := 1; i <= o.Nodes; i++ {
		names = append(names, fmt.Sprintf("node-%d", i))
	}
	return names
}

// inUserNS makes a process begin as root of a new user namespace, which owns its other new namespaces.
func inUserNS(attr *syscall.SysProcAttr) {
	attr.Cloneflags |= syscall.CLONE_NEWUSER
	attr.UidMappings = []syscall.SysProcIDMap{{ContainerID: 0, HostID: firstID, Size: ids}}
	attr.GidMappings = []syscall.SysProcIDMap{{ContainerID: 0, HostID: firstID, Size: ids}}
	attr.GidMappingsEnableSetgroups = true
	attr.Credential = &syscall.Credential{}
}

// imagesOf returns the directory of the node's containerd. Its files belong to the node's root.
func (l Lab) imagesOf(n Node) string {
	name := n.Name
	if n.UserNS {
		name += "-userns"
	}
	return filepath.Join(l.Work, "containerd", name)
}

// credentials returns the directory with the credentials of the control plane that the node may read.
func (l Lab) credentials(n Node) string {
	if n.UserNS {
		return filepath.Join(l.nodeDir(n.Name), "controlplane")
	}
	return l.controlPlaneDir()
}

// lend makes the node's directories and cgroups, and gives them to the root of its user namespace, like a service
// manager that delegates a cgroup.
func (l Lab) lend(group cgroups, name string) error {
	n := Node{Name: name, UserNS: true}
	for _, dir := range []string{l.nodeDir(name), l.imagesOf(n), l.credentials(n)} {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return err
		}
		if err := os.Chown(dir, firstID, firstID); err != nil {
			return err
		}
	}
	if err := group.make(name); err != nil {
		return err
	}
	for _, dir := range group.dirs {
		for _, file := range []string{"", "cgroup.procs", "tasks"} {
			if err := os.Chown(filepath.Join(dir, group.root, name, file), firstID, firstID); err != nil && !errors.Is(err, fs.ErrNotExist) {
				return err
			}
		}
	}
	return nil
}

// lendCredentials copies what kubelet reads, and marks the control plane as ready.
func (l Lab) lendCredentials(n Node) error {
	to := l.credentials(n)
	pki := filepath.Join(to, "pki")
	if err := os.Mkdir(pki, 0o755); err != nil {
		return err
	}
	serving := "kubelet-" + n.Name + "-serving"
	for _, name := range []string{"pki/ca.crt", "pki/" + serving + ".crt", "pki/" + serving + ".key", "kubelet-" + n.Name + ".kubeconfig", "ready"} {
		content, err := os.ReadFile(filepath.Join(l.controlPlaneDir(), name))
		if err != nil {
			return err
		}
		path := filepath.Join(to, name)
		if err := os.WriteFile(path, content, 0o600); err != nil {
			return err
		}
		if err := os.Chown(path, firstID, firstID); err != nil {
			return err
		}
	}
	return nil
}

package manifests

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/validation"
	"sigs.k8s.io/yaml"

	"tapestry.dev/tapestry/kube"
	"tapestry.dev/tapestry/kube/codec"
)

// Write replaces the file name in dir by the objects, in the format of codec.Encode. Readers see the old file or the
// new one, never a part. Write does not touch a file that has the right content already; it reports whether it
// changed anything.
func Write(dir, name string, objs kube.Objects) (changed bool, err error) {
	data, err := codec.Encode(objs)
	if err != nil {
		return false, fmt.Errorf("write %s: %w", name, err)
	}
	return replace(filepath.Join(dir, name), data, false)
}

// Publish writes s to status/<name>.yaml in dir, for the other agents. The file is on disk when Publish returns. Like
// Write, Publish replaces it atomically, and only when it has changed.
func Publish(dir string, s kube.NodeStatus) (changed bool, err error) {
	if wrong := validation.NameIsDNSSubdomain(s.Name, false); len(wrong) > 0 {
		return false, fmt.Errorf("publish node %q: %s", s.Name, wrong[0])
	}
	node := &corev1.Node{}
	node.SetGroupVersionKind(corev1.SchemeGroupVersion.WithKind("Node"))
	node.Name = s.Name
	node.Annotations = s.Annotations()
	for _, a := range s.Addrs {
		node.Status.Addresses = append(node.Status.Addresses, corev1.NodeAddress{Type: corev1.NodeInternalIP, Address: a.String()})
	}
	ready := corev1.NodeCondition{Type: corev1.NodeReady, Status: corev1.ConditionFalse, Reason: "NetworkNotReady", Message: s.Reason}
	if s.Ready {
		ready.Status, ready.Reason = corev1.ConditionTrue, "NetworkReady"
	}
	node.Status.Conditions = []corev1.NodeCondition{ready}
	doc, err := yaml.Marshal(node)
	if err != nil {
		return false, fmt.Errorf("publish node %s: %w", s.Name, err)
	}
	status := filepath.Join(dir, StatusDir)
	if err := os.MkdirAll(status, 0o755); err != nil {
		return false, fmt.Errorf("publish node %s: %w", s.Name, err)
	}
	return replace(filepath.Join(status, s.Name+".yaml"), doc, true)
}

// replace writes a new file beside path and swaps it in. With sync it also writes it to the disk.
func replace(path string, data []byte, sync bool) (changed bool, err error) {
	old, err := os.ReadFile(path)
	if err == nil && bytes.Equal(old, data) {
		return false, nil
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return false, fmt.Errorf("replace manifest: %w", err)
	}
	// Readers ignore a name with a leading dot or with this ending.
	f, err := os.CreateTemp(filepath.Dir(path), "."+filepath.Base(path)+".*.tmp")
	if err != nil {
		return false, fmt.Errorf("replace manifest: %w", err)
	}
	defer func() {
		if err != nil {
			os.Remove(f.Name())
		}
	}()
	if err := fill(f, data, sync); err != nil {
		return false, fmt.Errorf("replace manifest: %w", err)
	}
	if err := swap(f.Name(), path); err != nil {
		return false, fmt.Errorf("replace manifest: %w", err)
	}
	if sync {
		if err := syncDir(filepath.Dir(path)); err != nil {
			return true, fmt.Errorf("replace manifest: %w", err)
		}
	}
	return true, nil
}

// swap puts the file next in place of path and removes the old file. Where possible the two exchange their names. A
// rename over a file would make ext4 write the new file out first (auto_da_alloc), which sometimes takes 100 ms, and
// for so long a backend that died would still get connections.
func swap(next, path string) error {
	err := unix.Renameat2(unix.AT_FDCWD, next, unix.AT_FDCWD, path, unix.RENAME_EXCHANGE)
	if err != nil { // there was no old file, or the file system cannot exchange names
		return os.Rename(next, path)
	}
	return os.Remove(next)
}

func fill(f *os.File, data []byte, sync bool) error {
	_, err := f.Write(data)
	if err == nil {
		err = f.Chmod(0o644)
	}
	if err == nil && sync {
		err = f.Sync()
	}
	return errors.Join(err, f.Close())
}

func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

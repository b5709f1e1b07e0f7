// Package install puts the CNI plugin where a container runtime looks for it, and removes it again.
package install

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// The names of the executables. Besides the network's own plugin, runtimes start loopback for every pod (containerd
// has it built in since 2.0), so it must be there. One that another network installed will do.
const (
	plugin   = "tapestry-cni"
	loopback = "loopback"
)

// ConfigFile is the name of the network configuration. Runtimes use the first in the directory by name.
const ConfigFile = "10-tapestry.conflist"

// marker is a file in BinDir with the checksum of a loopback that Install brought. Uninstall recognizes the
// executable by it.
const marker = ".tapestry-loopback"

// Options of Install and Uninstall.
type Options struct {
	// BinDir is the runtime's directory of plugins, like /opt/cni/bin; ConfDir is that of network configurations,
	// like /etc/cni/net.d.
	BinDir, ConfDir string
	// Source is the directory with the executables to install. Uninstall needs none.
	Source string
	// Socket is the path of the agent's socket, as the runtime sees it; "" is the plugin's default.
	Socket string
}

// Install copies the executables, and then writes the configuration, after which the runtime considers the node's
// network ready. Each file is replaced atomically; one that has the right content already is left alone. The notes
// are for the user.
func Install(o Options) (notes []string, err error) {
	for _, dir := range []string{o.BinDir, o.ConfDir} {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return nil, fmt.Errorf("install the CNI plugin: %w", err)
		}
	}
	if err := place(o, plugin); err != nil {
		return nil, err
	}
	if note, err := placeLoopback(o); err != nil {
		return nil, err
	} else if note != "" {
		notes = append(notes, note)
	}
	config, err := configuration(o.Socket)
	if err != nil {
		return nil, err
	}
	if err := write(filepath.Join(o.ConfDir, ConfigFile), config, 0o644); err != nil {
		return nil, fmt.Errorf("install the network configuration: %w", err)
	}
	return append(notes, shadowedBy(o.ConfDir)...), nil
}

// configuration returns the network configuration. cniVersion is one that containerd 1.6 knows. A runtime that reads
// cniVersions chooses the latest version it supports, and so gets STATUS and GC.
func configuration(socket string) ([]byte, error) {
	type pluginConfig struct {
		Type         string          `json:"type"`
		Socket       string          `json:"socket,omitempty"`
		Capabilities map[string]bool `json:"capabilities"`
	}
	b, err := json.MarshalIndent(struct {
		Version  string         `json:"cniVersion"`
		Versions []string       `json:"cniVersions"`
		Name     string         `json:"name"`
		Plugins  []pluginConfig `json:"plugins"`
	}{
		"1.0.0", []string{"0.4.0", "1.0.0", "1.1.0"}, "tapestry",
		[]pluginConfig{{plugin, socket, map[string]bool{"portMappings": true, "bandwidth": true}}},
	}, "", "  ")
	return append(b, '\n'), err
}

func place(o Options, name string) error {
	b, err := os.ReadFile(filepath.Join(o.Source, name))
	if err != nil {
		return fmt.Errorf("install the CNI plugin: %w; --source must be the directory of the plugin executables", err)
	}
	if err := write(filepath.Join(o.BinDir, name), b, 0o755); err != nil {
		return fmt.Errorf("install the CNI plugin: %w", err)
	}
	return nil
}

func placeLoopback(o Options) (note string, err error) {
	target := filepath.Join(o.BinDir, loopback)
	have, err := sum(target)
	switch {
	case err == nil && have != readMarker(o.BinDir):
		return "", nil // another network installed it
	case err != nil && !errors.Is(err, fs.ErrNotExist):
		return "", fmt.Errorf("install the CNI plugin: %w", err)
	}
	brought, err := sum(filepath.Join(o.Source, loopback))
	if errors.Is(err, fs.ErrNotExist) {
		if have != "" {
			return "", nil
		}
		return fmt.Sprintf("there is no %s in %s, nor in %s: container runtimes that start it will start no pods; install the package containernetworking-plugins", loopback, o.BinDir, o.Source), nil
	}
	if err != nil {
		return "", fmt.Errorf("install the CNI plugin: %w", err)
	}
	// The marker is written first: without it the executable would not be recognized as Tapestry's.
	if err := write(filepath.Join(o.BinDir, marker), []byte(brought+"\n"), 0o644); err != nil {
		return "", fmt.Errorf("install the CNI plugin: %w", err)
	}
	return "", place(o, loopback)
}

func sum(path string) (string, error) {
	b, err := os.ReadFile(path)
	if err != nil {
		return "", err
	}
	h := sha256.Sum256(b)
	return hex.EncodeToString(h[:]), nil
}

func readMarker(dir string) string {
	b, _ := os.ReadFile(filepath.Join(dir, marker))
	return strings.TrimSpace(string(b))
}

// shadowedBy returns a note for each configuration that a runtime would use before Tapestry's.
func shadowedBy(dir string) (notes []string) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil
	}
	for _, e := range entries {
		if isConfig(e.Name()) && e.Name() < ConfigFile {
			notes = append(notes, fmt.Sprintf("%s comes before %s, so that the runtime uses it for pods: remove it if Tapestry is to be the network", filepath.Join(dir, e.Name()), ConfigFile))
		}
	}
	return notes
}

// isConfig reports whether libcni.ConfFiles takes a file of that name.
func isConfig(name string) bool {
	return slices.Contains([]string{".conf", ".conflist", ".json"}, filepath.Ext(name))
}

// Uninstall removes what Install brought, the configuration first. Files that are gone already are no error.
func Uninstall(o Options) error {
	paths := []string{filepath.Join(o.ConfDir, ConfigFile), filepath.Join(o.BinDir, plugin)}
	if have, err := sum(filepath.Join(o.BinDir, loopback)); err == nil && have == readMarker(o.BinDir) {
		paths = append(paths, filepath.Join(o.BinDir, loopback))
	}
	paths = append(paths, filepath.Join(o.BinDir, marker))
	for _, dir := range []string{o.BinDir, o.ConfDir} {
		rest, err := filepath.Glob(filepath.Join(dir, temporary+"*"))
		if err != nil {
			return err
		}
		paths = append(paths, rest...)
	}
	var errs []error
	for _, path := range paths {
		if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
			errs = append(errs, fmt.Errorf("uninstall the CNI plugin: %w", err))
		}
	}
	return errors.Join(errs...)
}

// temporary is the prefix of incomplete files. Their names end in nothing that a runtime looks for.
const temporary = ".tapestry-new-"

// write replaces a file atomically and durably, unless it has the right content and mode already.
func write(path string, content []byte, mode fs.FileMode) error {
	if have, err := os.ReadFile(path); err == nil && bytes.Equal(have, content) {
		if st, err := os.Stat(path); err == nil && st.Mode().Perm() == mode {
			return nil
		}
	}
	dir := filepath.Dir(path)
	f, err := os.CreateTemp(dir, temporary+"*")
	if err != nil {
		return err
	}
	_, err = f.Write(content)
	if err == nil {
		err = f.Chmod(mode)
	}
	if err == nil {
		err = f.Sync()
	}
	err = errors.Join(err, f.Close())
	if err == nil {
		err = os.Rename(f.Name(), path)
	}
	if err != nil {
		return errors.Join(err, os.Remove(f.Name()))
	}
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer d.Close()
	return d.Sync()
}

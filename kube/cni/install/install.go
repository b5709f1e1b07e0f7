// Package install puts the CNI plugin where a container runtime looks for it, and takes it away again.
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

// The executables. Runtimes start loopback for every pod besides the network's own plugin (containerd up to 1.7 has it
// built in since 2.0), and so it has to be there; another network's is as good as ours.
const (
	plugin   = "tapestry-cni"
	loopback = "loopback"
)

// ConfigFile is the name of the network configuration. Runtimes take the first of the directory.
const ConfigFile = "10-tapestry.conflist"

// marker in BinDir holds the checksum of a loopback that we brought, by which it is known as ours.
const marker = ".tapestry-loopback"

// Options say where.
type Options struct {
	// BinDir is the runtime's directory of plugins, ConfDir that of network configurations, as /opt/cni/bin and
	// /etc/cni/net.d.
	BinDir, ConfDir string
	// Source is the directory that the executables come from. Uninstall needs none.
	Source string
	// Socket is the agent's, as the runtime sees it; empty leaves it to the plugin.
	Socket string
}

// Install copies the executables and writes the configuration last, since with it the runtime counts the node's network
// ready. Each is replaced whole or not at all; one that is as it should be is left alone. It returns what the user
// should know of.
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

// configuration is the network configuration. The version is one that containerd 1.6 knows; a runtime that knows
// cniVersions chooses the latest one it can, and so gets STATUS and GC.
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
		return "", nil // somebody else's
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
	// First, for without it the executable would not be known as ours.
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

// shadowedBy tells of configurations that a runtime would take before ours.
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

// isConfig follows libcni.ConfFiles.
func isConfig(name string) bool {
	return slices.Contains([]string{".conf", ".conflist", ".json"}, filepath.Ext(name))
}

// Uninstall removes what Install brought, the configuration first. What is gone already is no error.
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

// temporary begins the names of files that are not whole yet; they have no suffix that a runtime would look for.
const temporary = ".tapestry-new-"

// write replaces a file, durably, unless it is as it should be.
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

package node

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"
)

// Argument makes the program that runs the labs the first process of a node: it calls Main.
const Argument = "node-init"

// Main is the main function of a node's first process. It reads its Config from r, which comes when its network and its
// cgroups are ready. It returns only when it cannot continue. pause is the name of the pause image.
func Main(r io.Reader, pause string) error {
	var c Config
	if err := json.NewDecoder(r).Decode(&c); err != nil {
		return fmt.Errorf("read the node's configuration: %w", err)
	}
	if os.Getpid() != 1 {
		return errors.New("a node's first process needs a process namespace of its own")
	}
	// The proxies and kubeconfigs of whoever runs the lab must not matter.
	os.Clearenv()
	for name, value := range map[string]string{"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "HOME": "/root"} {
		if err := os.Setenv(name, value); err != nil {
			return err
		}
	}
	if err := syscall.Sethostname([]byte(c.Name)); err != nil {
		return fmt.Errorf("set the host name: %w", err)
	}
	if err := c.mounts(); err != nil {
		return err
	}
	if err := c.sysctls(); err != nil {
		return err
	}
	if err := c.writeConfigs(pause); err != nil {
		return err
	}
	containerd, err := c.containerd()
	if err != nil {
		return err
	}
	if err := c.controlPlane(); err != nil {
		return err
	}
	kubelet := &daemon{name: "kubelet", log: c.file("kubelet.log"), argv: []string{
		filepath.Join(c.Bin, "kubelet"),
		"--config=" + c.file("kubelet.yaml"),
		"--kubeconfig=" + filepath.Join(c.ControlPlane, "kubelet-"+c.Name+".kubeconfig"),
		"--hostname-override=" + c.Name,
		"--node-ip=" + strings.Join(c.Addrs, ","),
		"--root-dir=/var/lib/kubelet",
		"--v=2",
	}}
	if err := kubelet.start(); err != nil {
		return err
	}
	slog.Info("kubelet started", "node", c.Name)
	return reap(containerd, kubelet)
}

// containerd starts containerd with the images that the node must have. It removes the containers of an earlier
// cluster.
func (c Config) containerd() (*daemon, error) {
	d := &daemon{name: "containerd", log: c.file("containerd.log"), argv: []string{"containerd", "-c", c.file("containerd.toml")}}
	if err := d.start(); err != nil {
		return nil, err
	}
	if err := answered(d); err != nil {
		return nil, err
	}
	left, err := ctr("containers", "list", "--quiet")
	if err != nil {
		return nil, err
	}
	if names := strings.Fields(left); len(names) > 0 {
		slog.Info("remove containers of the last cluster", "containers", len(names))
		if _, err := ctr(append([]string{"containers", "rm"}, names...)...); err != nil {
			return nil, err
		}
		// containerd has these containers in its memory.
		if err := d.stop(); err != nil {
			return nil, err
		}
		if err := d.start(); err != nil {
			return nil, err
		}
		if err := answered(d); err != nil {
			return nil, err
		}
	}
	return d, c.importImages()
}

// importImages imports the archives that this node does not have yet.
func (c Config) importImages() error {
	stamps := filepath.Join(c.Images, "imported")
	if err := os.MkdirAll(stamps, 0o755); err != nil {
		return err
	}
	for _, archive := range c.Archives {
		stamp := filepath.Join(stamps, filepath.Base(archive))
		if _, err := os.Stat(stamp); err == nil {
			continue
		} else if !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		began := time.Now()
		if _, err := ctr("images", "import", archive); err != nil {
			return err
		}
		if err := os.WriteFile(stamp, nil, 0o644); err != nil {
			return err
		}
		slog.Info("images imported", "archive", archive, "took", time.Since(began).Round(time.Millisecond))
	}
	return nil
}

// controlPlane waits until the control plane is ready, since kubelet's own attempts become less and less frequent.
func (c Config) controlPlane() error {
	ready := filepath.Join(c.ControlPlane, "ready")
	return poll(2*time.Minute, func() error {
		_, err := os.Stat(ready)
		return err
	})
}

func answered(d *daemon) error {
	return poll(30*time.Second, func() error {
		if !d.running() {
			return fmt.Errorf("containerd has ended: see %s", d.log)
		}
		_, err := ctr("version")
		return err
	})
}

// ctr runs containerd's command ctr in the namespace of the container runtime interface.
func ctr(args ...string) (string, error) {
	cmd := exec.Command("ctr", append([]string{"--address", Socket, "--namespace", "k8s.io"}, args...)...)
	var out, problems bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &problems
	if err := cmd.Run(); err != nil {
		return "", fmt.Errorf("ctr %s: %w: %s", strings.Join(args, " "), err, strings.TrimSpace(problems.String()))
	}
	return out.String(), nil
}

// poll calls try until it succeeds. The error is that of the last attempt.
func poll(timeout time.Duration, try func() error) error {
	ctx, cancel := context.WithTimeout(context.Background(), timeout)
	defer cancel()
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for {
		err := try()
		if err == nil {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("not within %v: %w", timeout, err)
		case <-tick.C:
		}
	}
}

// A daemon is a program that runs as long as the node. It is not an exec.Cmd, since the Wait of an exec.Cmd would
// compete with reap.
type daemon struct {
	name, log string
	argv      []string
	process   *os.Process
}

func (d *daemon) start() error {
	path, err := exec.LookPath(d.argv[0])
	if err != nil {
		return fmt.Errorf("start %s: %w", d.name, err)
	}
	log, err := os.OpenFile(d.log, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return err
	}
	defer log.Close()
	null, err := os.Open(os.DevNull)
	if err != nil {
		return err
	}
	defer null.Close()
	d.process, err = os.StartProcess(path, d.argv, &os.ProcAttr{Env: os.Environ(), Files: []*os.File{null, log, log}})
	if err != nil {
		return fmt.Errorf("start %s: %w", d.name, err)
	}
	return nil
}

// running reports whether the process exists and is no zombie.
func (d *daemon) running() bool {
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", d.process.Pid))
	if err != nil {
		return false
	}
	_, after, _ := bytes.Cut(stat, []byte(") "))
	return !bytes.HasPrefix(after, []byte("Z"))
}

func (d *daemon) stop() error {
	if err := d.process.Signal(syscall.SIGTERM); err != nil {
		return err
	}
	_, err := d.process.Wait()
	return err
}

// reap reaps every process that ends, and starts daemons again.
func reap(daemons ...*daemon) error {
	for {
		var status syscall.WaitStatus
		pid, err := syscall.Wait4(-1, &status, 0, nil)
		if errors.Is(err, syscall.EINTR) {
			continue
		}
		if err != nil {
			return fmt.Errorf("wait for processes: %w", err)
		}
		i := slices.IndexFunc(daemons, func(d *daemon) bool { return d.process.Pid == pid })
		if i < 0 {
			continue
		}
		d := daemons[i]
		slog.Error("a daemon has ended and is started again", "daemon", d.name, "status", int(status), "log", d.log)
		time.Sleep(time.Second) // like a service manager, since it may end again at once
		if err := d.start(); err != nil {
			return err
		}
	}
}

package userns

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"tapestry.dev/tapestry/test/await"
)

// programVar names the program that this test binary runs in place of the tests.
const programVar = "TAPESTRY_TEST_PROGRAM"

func TestMain(m *testing.M) {
	Maybe()
	if p, ok := programs[os.Getenv(programVar)]; ok {
		os.Exit(p())
	}
	// The programs need not wait a second when they end for reports of the race detector.
	os.Setenv("GORACE", "atexit_sleep_ms=0 "+os.Getenv("GORACE"))
	os.Exit(m.Run())
}

var programs = map[string]func() int{
	"report": report,
	"launch": launch,
	"status": func() int { return 7 },
	"killed": func() int {
		_ = syscall.Kill(os.Getpid(), syscall.SIGKILL)
		select {}
	},
	"wait": func() int {
		c := make(chan os.Signal, 1)
		signal.Notify(c, syscall.SIGTERM)
		fmt.Println("ready")
		<-c
		return 3
	},
	// abandon leaves a process behind that would run on, and ends.
	"abandon": func() int {
		if err := exec.Command("sleep", "60").Start(); err != nil {
			return 1
		}
		return 0
	},
	// orphan makes an orphan that ends at once, and waits until it is gone.
	"orphan": func() int {
		if err := exec.Command("sh", "-c", "sh -c 'sleep 0.01' &").Run(); err != nil {
			return 1
		}
		for range 500 {
			procs, _ := filepath.Glob("/proc/[0-9]*")
			if len(procs) == 2 {
				return 0
			}
			time.Sleep(10 * time.Millisecond)
		}
		return 1
	},
	"forbidden": func() int {
		if err := os.WriteFile("/proc/sys/user/max_net_namespaces", []byte("0"), 0); err != nil {
			fmt.Fprintln(os.Stderr, err)
			return 2
		}
		return launch()
	},
	"mount": func() int {
		if err := unix.Mount("tmpfs", "/mnt", "tmpfs", 0, ""); err != nil {
			fmt.Fprintln(os.Stderr, err)
			return 1
		}
		if err := os.WriteFile("/mnt/tapestry-inside", nil, 0o600); err != nil {
			return 1
		}
		return 0
	},
	"file": func() int {
		f := os.NewFile(3, "file")
		if _, err := io.WriteString(f, "written inside"); err != nil {
			return 1
		}
		return 0
	},
}

// view is what a program inside sees.
type view struct {
	Inside      bool
	UID, PPID   int
	Interfaces  []string
	LoopbackUp  bool
	NetworkNS   string
	CanOpenTUN  bool
	Args        []string
	ProcMatches bool
}

func look() view {
	v := view{Inside: Inside(), UID: os.Getuid(), PPID: os.Getppid(), Args: os.Args[1:]}
	ifs, _ := net.Interfaces()
	for _, i := range ifs {
		v.Interfaces = append(v.Interfaces, i.Name)
		v.LoopbackUp = v.LoopbackUp || i.Name == "lo" && i.Flags&net.FlagUp != 0
	}
	v.NetworkNS, _ = os.Readlink("/proc/self/ns/net")
	self, _ := os.Readlink("/proc/self")
	v.ProcMatches = self == fmt.Sprint(os.Getpid())
	v.CanOpenTUN = checkTUN() == nil
	return v
}

func report() int {
	if err := json.NewEncoder(os.Stdout).Encode(look()); err != nil {
		return 1
	}
	return 0
}

// launch is a program outside that runs "wait" inside.
func launch() int {
	return Run(Options{Env: append(os.Environ(), programVar+"=wait")})
}

// command prepares a program inside. The test's thread stays locked because of the parent-death signal.
func command(t *testing.T, program string, o Options) *exec.Cmd {
	t.Helper()
	runtime.LockOSThread()
	t.Cleanup(runtime.UnlockOSThread)
	o.Env = append(os.Environ(), programVar+"="+program)
	cmd, err := Command(o)
	if err != nil {
		t.Fatal(err)
	}
	cmd.Stderr = os.Stderr
	return cmd
}

func TestInside(t *testing.T) {
	out, err := command(t, "report", Options{Args: []string{"one", "two"}}).Output()
	if err != nil {
		t.Fatal(err)
	}
	var v view
	if err := json.Unmarshal(out, &v); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	here := look()
	if here.Inside {
		t.Error("the test itself seems to be inside")
	}
	if !v.Inside || v.UID != 0 || v.PPID != 1 || !v.LoopbackUp || !v.CanOpenTUN || !v.ProcMatches {
		t.Errorf("inside: %+v", v)
	}
	if v.NetworkNS == here.NetworkNS {
		t.Error("the network is the same")
	}
	if strings.Join(v.Args, " ") != "one two" {
		t.Errorf("arguments %q", v.Args)
	}
	for _, name := range v.Interfaces {
		for _, physical := range []string{"eth0", "ens3", "wlan0"} {
			if name == physical {
				t.Errorf("%s is visible inside", name)
			}
		}
	}
}

func TestStatus(t *testing.T) {
	for _, tc := range []struct {
		program string
		want    int
	}{{"status", 7}, {"killed", 128 + 9}, {"abandon", 0}, {"orphan", 0}, {"mount", 0}} {
		t.Run(tc.program, func(t *testing.T) {
			cmd := command(t, tc.program, Options{})
			var exit *exec.ExitError
			if err := cmd.Run(); err != nil && !errors.As(err, &exit) {
				t.Fatal(err)
			}
			if got := cmd.ProcessState.ExitCode(); got != tc.want {
				t.Errorf("status %d, want %d", got, tc.want)
			}
		})
	}
	if _, err := os.Stat("/mnt/tapestry-inside"); err == nil {
		t.Error("a mount made inside shows outside")
	}
}

func TestFiles(t *testing.T) {
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	cmd := command(t, "file", Options{Files: []*os.File{w}})
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	w.Close()
	got, err := io.ReadAll(r)
	if err != nil || string(got) != "written inside" {
		t.Errorf("read %q, %v", got, err)
	}
	if err := cmd.Wait(); err != nil {
		t.Error(err)
	}
}

func TestSignal(t *testing.T) {
	cmd := command(t, "wait", Options{})
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	if line, err := bufio.NewReader(out).ReadString('\n'); line != "ready\n" {
		t.Fatalf("%q, %v", line, err)
	}
	_ = cmd.Process.Signal(syscall.SIGTERM)
	_ = cmd.Wait()
	if got := cmd.ProcessState.ExitCode(); got != 3 {
		t.Errorf("status %d, want 3, which the program gives on SIGTERM", got)
	}
}

// TestDiesWithStarter kills the process that called Run, and waits until the program inside ends, which holds the other
// end of a pipe.
func TestDiesWithStarter(t *testing.T) {
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = append(os.Environ(), programVar+"=launch")
	cmd.Stdout, cmd.Stderr = w, os.Stderr
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	w.Close()
	in := bufio.NewReader(r)
	if line, err := in.ReadString('\n'); line != "ready\n" {
		t.Fatalf("%q, %v", line, err)
	}
	_ = cmd.Process.Kill()
	_ = cmd.Wait()
	_ = r.SetReadDeadline(time.Now().Add(await.Patience))
	if _, err := in.ReadByte(); err != io.EOF {
		t.Errorf("the program outlives its starter: %v", err)
	}
}

func TestRunForwards(t *testing.T) {
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = append(os.Environ(), programVar+"=launch")
	cmd.Stderr = os.Stderr
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	if line, err := bufio.NewReader(out).ReadString('\n'); line != "ready\n" {
		t.Fatalf("%q, %v", line, err)
	}
	_ = cmd.Process.Signal(syscall.SIGTERM)
	_ = cmd.Wait()
	if got := cmd.ProcessState.ExitCode(); got != 3 {
		t.Errorf("status %d, want 3", got)
	}
}

func TestInitRefusesElsewhere(t *testing.T) {
	var stderr bytes.Buffer
	init, err := stage{}.env(stageInit)
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = append(os.Environ(), init)
	cmd.Stderr = &stderr
	_ = cmd.Run()
	if cmd.ProcessState.ExitCode() != 1 || !strings.Contains(stderr.String(), "process 1") {
		t.Errorf("status %d, %q", cmd.ProcessState.ExitCode(), stderr.String())
	}
}

// A variable inherited from another executable is ignored.
func TestForeignStage(t *testing.T) {
	t.Setenv(stageVar, stageChild+":0:false:1.2")
	if Inside() {
		t.Error("another program's stage is taken for ours")
	}
}

// TestForbidden runs where the kernel allows no network namespaces: in a user namespace with a limit of its own.
func TestForbidden(t *testing.T) {
	var stderr bytes.Buffer
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = append(os.Environ(), programVar+"=forbidden")
	cmd.Stderr = &stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags:  unix.CLONE_NEWUSER,
		UidMappings: []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getuid(), Size: 1}},
		GidMappings: []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getgid(), Size: 1}},
	}
	_ = cmd.Run()
	const want = `allow it with "sudo sysctl -w user.max_net_namespaces=15000"`
	if cmd.ProcessState.ExitCode() != 1 || !strings.Contains(stderr.String(), want) || strings.Count(stderr.String(), "\n") != 1 {
		t.Errorf("status %d, %q, want %q on one line", cmd.ProcessState.ExitCode(), stderr.String(), want)
	}
}

func TestRefused(t *testing.T) {
	for _, tc := range []struct {
		name   string
		err    error
		sysctl map[string]string
		want   string
	}{
		{"disabled", unix.EPERM, map[string]string{"kernel.unprivileged_userns_clone": "0"},
			`make namespaces: operation not permitted: allow it with "sudo sysctl -w kernel.unprivileged_userns_clone=1", or run as root`},
		{"apparmor", unix.EACCES, map[string]string{"kernel.unprivileged_userns_clone": "1", "kernel.apparmor_restrict_unprivileged_userns": "1"},
			`make namespaces: permission denied: allow it with "sudo sysctl -w kernel.apparmor_restrict_unprivileged_userns=0", or run as root`},
		{"none left", unix.ENOSPC, map[string]string{"user.max_user_namespaces": "0"},
			`make namespaces: no space left on device: allow it with "sudo sysctl -w user.max_user_namespaces=15000", or run as root`},
		{"seccomp", &os.PathError{Op: "fork/exec", Path: "x", Err: unix.EPERM}, nil,
			`make namespaces: fork/exec x: operation not permitted: run as root, or allow user namespaces (a container needs a seccomp profile that permits unshare and mount)`},
		{"not built in", unix.EINVAL, nil,
			`make namespaces: invalid argument: the kernel must be built with CONFIG_USER_NS, CONFIG_NET_NS and CONFIG_PID_NS, or run as root`},
		{"other", fs.ErrNotExist, nil, `make namespaces: file does not exist`},
	} {
		t.Run(tc.name, func(t *testing.T) {
			got := refusedBy("make namespaces", tc.err, func(key string) string { return tc.sysctl[key] })
			if got.Error() != tc.want {
				t.Errorf("got  %s\nwant %s", got, tc.want)
			}
			if !errors.Is(got, tc.err) {
				t.Error("the cause is lost")
			}
		})
	}
}

func TestExplainTUN(t *testing.T) {
	for _, tc := range []struct {
		err  error
		want string
	}{
		{unix.EACCES, `/dev/net/tun: permission denied: allow it with "sudo chmod 0666 /dev/net/tun"`},
		{unix.EPERM, `/dev/net/tun: operation not permitted: allow the container the device 10:200, for example with "--device /dev/net/tun"`},
		{unix.ENOENT, `/dev/net/tun: no such file or directory: load the driver with "sudo modprobe tun", or give a container the device with "--device /dev/net/tun"`},
		{unix.ENODEV, `/dev/net/tun: no such device: load the driver with "sudo modprobe tun"`},
	} {
		if got := explainTUN(tc.err).Error(); got != tc.want {
			t.Errorf("got  %s\nwant %s", got, tc.want)
		}
	}
}

// Package rpc is what a lab's supervisor and its clients say to each other over the supervisor's socket: one request
// to a connection, then its answers.
package rpc

import (
	"path/filepath"
	"time"
)

// The requests.
const (
	// OpStatus is answered with a Status, in the memory file that comes along: it may be larger than a message.
	OpStatus = "status"
	// OpWait is answered as soon as everything is ready, and after Timeout with what is not.
	OpWait = "wait"
	// OpExec starts a command. It comes with stdin, stdout and stderr, or with one terminal.
	OpExec = "exec"
	// OpImpair and OpUnimpair change the underlay between two nodes.
	OpImpair   = "impair"
	OpUnimpair = "unimpair"
	// OpSignalAgent sends a signal to a node's agent; OpStartAgent starts one that was told to stay down.
	OpSignalAgent = "signal-agent"
	OpStartAgent  = "start-agent"
	// OpDown ends the lab. The connection ends with it.
	OpDown = "down"
)

// Request opens a conversation.
type Request struct {
	Op      string
	Exec    *Exec         `json:",omitempty"`
	Impair  *Impair       `json:",omitempty"`
	Agent   *Agent        `json:",omitempty"`
	Timeout time.Duration `json:",omitempty"`
}

// Exec is a command to run.
type Exec struct {
	// Kind is one of the kinds of target, and Name says which: a pod as "namespace/name", a node by name.
	Kind, Name string
	Argv       []string
	// Env is added to the environment of the target.
	Env []string
	Dir string `json:",omitempty"`
	// Terminal says that one descriptor came, which becomes the controlling terminal.
	Terminal bool
}

// The kinds of Exec targets.
const (
	Pod     = "pod"
	Node    = "node"
	Outside = "outside"
)

// Impair names two members of the underlay: nodes, or "outside".
type Impair struct {
	A, B string
	// Config is an impair.Config.
	Config []byte `json:",omitempty"`
}

// Agent is what to do with a node's agent.
type Agent struct {
	Node   string
	Signal int `json:",omitempty"`
	// Keeper means the node's keeper instead.
	Keeper bool `json:",omitempty"`
	// StayDown keeps the supervisor from starting it again when it ends.
	StayDown bool `json:",omitempty"`
}

// Answer is what the supervisor says; Exec gets two, one when the command has started and one with Exit.
type Answer struct {
	Error string `json:",omitempty"`
	Exit  *int   `json:",omitempty"`
	PID   int    `json:",omitempty"`
}

// Signal is what the client of an Exec may say while the command runs.
type Signal struct {
	Number int
}

// Paths in the folder of a lab.
const (
	socketName = "lab.sock"
	configName = "config.json"
	pidName    = "pid"
	logName    = "supervisor.log"
)

// Socket is where the supervisor of the lab in dir listens.
func Socket(dir string) string { return filepath.Join(dir, socketName) }

// ConfigFile is what the supervisor is to do.
func ConfigFile(dir string) string { return filepath.Join(dir, configName) }

// PIDFile names the first process of the lab's namespaces, as its starter sees it.
func PIDFile(dir string) string { return filepath.Join(dir, pidName) }

// LogFile is what the supervisor logs.
func LogFile(dir string) string { return filepath.Join(dir, logName) }

// PodDir is where what belongs to a pod is; NodeDir the same for a node.
func PodDir(dir, namespace, name string) string {
	return filepath.Join(dir, "pods", namespace+"_"+name)
}

// NodeDir is where what belongs to a node is.
func NodeDir(dir, name string) string { return filepath.Join(dir, "nodes", name) }

// PodLog is what the containers of a pod write.
func PodLog(dir, namespace, name string) string {
	return filepath.Join(dir, "pods", namespace+"_"+name+".log")
}

// NodeLog is what a program of a node writes: its agent, keeper or host-tap.
func NodeLog(dir, node, program string) string {
	return filepath.Join(NodeDir(dir, node), program+".log")
}

// ObjectsDir is where the agents find the objects.
func ObjectsDir(dir string) string { return filepath.Join(dir, "objects") }

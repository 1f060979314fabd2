package testbed

import "syscall"

// childAttributes gives a child a process group of its own, so that Ctrl-C reaches it only through us and in order, and
// lets it die with us if we are killed.
func childAttributes() *syscall.SysProcAttr {
	return &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
}

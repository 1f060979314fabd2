//go:build !linux

package testbed

import "syscall"

func childAttributes() *syscall.SysProcAttr {
	return nil
}
